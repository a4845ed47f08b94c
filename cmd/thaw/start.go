package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"thaw/cache"
	"thaw/catalog"
	"thaw/convert"
	"thaw/host"
	"thaw/oci"
	"thaw/text"
)

// stopwatch measures the stages of a start.
type stopwatch struct {
	began, last time.Time
	stages      map[string]float64 // ms
}

func newStopwatch() *stopwatch {
	now := time.Now()
	return &stopwatch{now, now, map[string]float64{}}
}

// lap ends a stage.
func (s *stopwatch) lap(stage string) {
	now := time.Now()
	s.stages[stage] += float64(now.Sub(s.last).Microseconds()) / 1000
	s.last = now
}

// restart ends a stage that is no part of the start: the first conversion.
func (s *stopwatch) restart(stage string) {
	s.lap(stage)
	s.began = s.last
}

// started is an image in use, and an instance of it that this process keeps.
type started struct {
	*startable
	host           *host.Host
	fetcher, image *host.Use
	instance       *host.Instance
	watch          *stopwatch
	before         cache.Stats // of the image's agent
	tracing        tracing
	traceDamaged   bool
}

// start mounts an image, or has it mounted, and makes an instance. On an error
// nothing is left.
func (g *Globals) start(ctx context.Context, what subject, kind string, t tracing) (*started, error) {
	s := &started{watch: newStopwatch(), tracing: t}
	g.wantTrace = t != tracing{}
	// What our caller left open is not for the fetcher, the shim and containers.
	err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("close_range: %w", err)
	}
	if s.host, err = host.Open(g.State); err != nil {
		return nil, err
	}
	if _, err := s.host.Reap(ctx); err != nil {
		g.logger().Warn("left over from before, and not cleaned: " + text.Line(err.Error()))
	}
	s.watch.lap("clean")
	if s.startable, err = g.findOrConvert(ctx, what, s.watch); err != nil {
		s.host.Close()
		return nil, err
	}
	s.traceDamaged = g.checkTrace(s.startable)
	s.watch.lap("resolve")
	if err := g.acquire(ctx, s); err != nil {
		return nil, errors.Join(err, s.release(ctx))
	}
	if s.instance, err = s.host.NewInstance(kind, s.image, s.fetcher); err != nil {
		return nil, errors.Join(err, s.release(ctx))
	}
	s.instance.Image, s.instance.ImageID = what.name, s.id.String()
	if err := s.instance.Save(); err != nil { // who lists it now sees what it will be
		return nil, errors.Join(err, s.release(ctx))
	}
	return s, nil
}

// acquire has the fetcher run and the image mounted.
func (g *Globals) acquire(ctx context.Context, s *started) (err error) {
	fetcher, err := g.fetcherCommand()
	if err != nil {
		return err
	}
	s.fetcher, err = s.host.UseFetcher(ctx, fetcher)
	if err != nil {
		return err
	}
	if running, err := s.host.Fetcher(s.fetcher); err == nil {
		g.tellOther(fetcher.Args, running.Args)
	}
	s.watch.lap("fetcher")
	program, err := g.part("thaw-agent")
	if err != nil {
		return err
	}
	image := host.Image{
		ID: s.id.String(), Name: s.name, Root: s.root, Agent: program, Deadline: g.OriginDeadline, Manifest: s.sealed, DataKey: s.dataKey,
		Start: s.watch.began, Trace: s.trace, Record: s.tracing.record,
	}
	if s.tracing.ahead {
		image.Prefetch = min(mostAhead, int64(g.CacheSize)/2)
	}
	s.image, err = s.host.UseImage(ctx, s.fetcher, image)
	if err == nil && !s.image.Made() {
		s.before = s.host.Stats(ctx, s.image)
		if was, err := s.host.Deadline(s.image); err == nil && was != g.OriginDeadline {
			g.logger().Warn(s.name + ": others have the image mounted already: --origin-deadline=" + was.String() + " holds")
		}
		if s.tracing.record {
			s.tracing.record = false
			g.logger().Warn(s.name + ": this start is not recorded: others have the image mounted already")
		}
	}
	s.watch.lap("mount")
	return err
}

// fetcherCommand says how to start the fetcher that these flags ask for.
func (g *Globals) fetcherCommand() (f host.Fetcher, err error) {
	self, err := os.Executable()
	if err != nil {
		return f, err
	}
	if err := os.MkdirAll(g.Cache, 0o755); err != nil {
		return f, fmt.Errorf("cache: %w", err)
	}
	if err := unix.Access(g.Cache, unix.W_OK); err != nil {
		g.logger().Warn("what is read is not kept", "cache", g.Cache, "cause", err.Error())
	}
	if err := g.checkZone(); err != nil {
		return f, err
	}
	zoneArgs := g.zoneArgs()
	return host.Fetcher{Origin: g.Origin, Cache: g.Cache, Zone: strings.Join(zoneArgs, " "), Args: append([]string{
		self, "fetcher", "--origin=" + g.Origin, "--state=" + g.State, "--cache=" + g.Cache, "--cache-size=" + g.CacheSize.String(), "--log-format=" + g.LogFormat,
		"--origin-requests=" + strconv.Itoa(g.OriginRequests),
	}, zoneArgs...)}, nil
}

// tellOther tells which flags a fetcher that runs already was started with, and
// would not be now.
func (g *Globals) tellOther(ours, running []string) {
	for _, arg := range running[min(1, len(running)):] {
		if strings.HasPrefix(arg, "--") && !strings.HasPrefix(arg, "--log-format=") && !slices.Contains(ours, arg) {
			g.logger().Warn("others use this cache already: " + arg + " holds until they have ended")
		}
	}
}

// release gives back what was acquired.
func (s *started) release(ctx context.Context) (err error) {
	ctx = context.WithoutCancel(ctx)
	if s.instance != nil {
		err = s.instance.End(ctx)
	}
	if s.image != nil {
		err = errors.Join(err, s.host.ReleaseImage(ctx, s.image))
	}
	if s.fetcher != nil {
		err = errors.Join(err, s.host.ReleaseFetcher(ctx, s.fetcher))
	}
	s.host.Close()
	return err
}

// subject is IMAGE or SOURCE, and how to read a source.
type subject struct {
	name    string
	options oci.Options
}

// findOrConvert finds an image, or converts what names a source.
func (g *Globals) findOrConvert(ctx context.Context, what subject, watch *stopwatch) (*startable, error) {
	if err := checkPath(what.name); err != nil {
		return nil, err
	}
	if scheme, _, ok := strings.Cut(what.name, ":"); ok {
		switch scheme {
		case "docker", "oci", "oci-archive", "docker-archive":
			return g.convertAndFind(ctx, what, watch)
		}
	}
	s, err := g.find(ctx, what.name)
	if errors.Is(err, catalog.ErrNotFound) && strings.ContainsAny(what.name, ":/.") {
		return g.convertAndFind(ctx, what, watch) // a reference
	}
	if errors.Is(err, catalog.ErrNotFound) {
		err = fmt.Errorf("%w (thaw images lists names; a registry's is docker://%s, a folder's oci:DIR)", err, what.name)
	}
	if err == nil {
		err = checkPlatform(s, what)
	}
	return s, err
}

// checkPlatform refuses an image that was converted for another platform than
// is asked for now.
func checkPlatform(s *startable, what subject) error {
	if what.options.Platform == "" {
		return nil
	}
	var have struct{ OS, Architecture, Variant string }
	if err := json.Unmarshal(s.Config, &have); err != nil {
		return fmt.Errorf("image %s: its config: %w", what.name, err)
	}
	is := have.OS + "/" + have.Architecture
	if want := what.options.Platform; want == is || want == is+"/"+have.Variant || have.Variant == "" && strings.HasPrefix(want, is+"/") {
		return nil
	}
	return fmt.Errorf("image %s is for %s: thaw convert --platform %s --name N makes another", what.name, is, what.options.Platform)
}

// convertAndFind converts a source. What was converted before is not read
// again.
func (g *Globals) convertAndFind(ctx context.Context, source subject, watch *stopwatch) (*startable, error) {
	res, err := g.convert(ctx, convert.Options{Source: source.name, Image: source.options, ChunkSize: defaultChunkSize, Free: defaultFree})
	if err != nil {
		return nil, err
	}
	watch.restart("convert")
	found, err := g.findIn(ctx, g.local(), res.Name)
	if err == nil && found.id.String() != res.Image {
		return nil, fmt.Errorf("%s: the name %s was given to another image meanwhile: try again", source.name, res.Name)
	}
	return found, err
}

// hand replaces this program by the shim, which keeps the instance and takes
// everything down at its end. It returns only an error.
func (s *started) hand(ctx context.Context, g *Globals, o host.Order) error {
	if o.StatsFile != "" {
		var err error
		if o.StatsFile, err = filepath.Abs(o.StatsFile); err != nil {
			return err
		}
	}
	o.Began, o.Stages, o.DeviceBytes, o.Before, o.TraceDamaged = s.watch.began, s.watch.stages, s.Size, s.before, s.traceDamaged
	if s.tracing.record {
		var err error
		if o.KeepTrace, err = g.keepTrace(s); err != nil {
			return err
		}
	}
	for _, c := range s.Chunks {
		o.ImageBytes += int64(c.Size)
	}
	program, err := g.part("thaw-shim")
	if err != nil {
		return err
	}
	if err := errors.Join(s.instance.Give(o), s.instance.Save()); err != nil {
		return err
	}
	args, err := host.Handoff(s.instance, s.image, s.fetcher)
	if err != nil {
		return err
	}
	if err := g.lastCall(ctx); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", program, syscall.Exec(program, append([]string{"thaw-shim"}, args...), os.Environ()))
}
