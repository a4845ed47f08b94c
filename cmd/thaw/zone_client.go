package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"thaw/chunk"
	"thaw/text"
	"thaw/zone"
)

// zoneFlags are how a zone is used, for all who use it. Code and deadline are as
// they were typed: who uses no zone is not to be stopped by the environment.
type zoneFlags struct {
	ZoneCode     string `help:"K/N: a chunk is cut into N stripes on N nodes, any K of which give it back; all users of a zone say the same (4/5 from five nodes on, else 1/1)." env:"THAW_ZONE_CODE" placeholder:"K/N" group:"globals"`
	ZoneDeadline string `help:"How long the zone may take to give a chunk, before the origin is asked (1s)." env:"THAW_ZONE_DEADLINE" placeholder:"DURATION" group:"globals"`
	ZoneCA       string `name:"zone-ca" help:"The zone's nodes have TLS, with certificates of one of these authorities, PEM." env:"THAW_ZONE_CA" placeholder:"FILE" type:"path" group:"globals"`
	ZoneCert     string `name:"zone-cert" help:"Certificate to show to nodes, PEM." env:"THAW_ZONE_CERT" placeholder:"FILE" type:"path" group:"globals"`
	ZoneKey      string `name:"zone-key" help:"Its key, PEM." env:"THAW_ZONE_KEY" placeholder:"FILE" type:"path" group:"globals"`
}

// maxZoneDeadline is how long nobody would wait for a cache.
const maxZoneDeadline = time.Minute

// parseCode reads "4/5"; "" is zeros, for what the number of nodes makes it.
func parseCode(text string) (k, n int, err error) {
	if text == "" {
		return 0, 0, nil
	}
	before, after, ok := strings.Cut(text, "/")
	k, err = strconv.Atoi(before)
	n, err2 := strconv.Atoi(after)
	if !ok || err != nil || err2 != nil || k < 1 || n < k || n > 32 {
		return 0, 0, fmt.Errorf("--zone-code: %q is not K/N: want two numbers, 1 ≤ K ≤ N ≤ 32, such as 4/5", text)
	}
	return k, n, nil
}

// parseDeadline reads a duration; "" is 0, for the usual one.
func parseDeadline(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	switch {
	case err != nil || d < 0:
		return 0, fmt.Errorf("--zone-deadline: %q is not a duration such as 1s", text)
	case d > maxZoneDeadline:
		return 0, errors.New("--zone-deadline: want 1m at most")
	}
	return d, nil
}

// zoneOptions gives what the flags say of a zone.
func (g *Globals) zoneOptions() (zone.Options, error) {
	k, n, err := parseCode(g.ZoneCode)
	deadline, derr := parseDeadline(g.ZoneDeadline)
	return zone.Options{Zone: g.Zone, K: k, N: n, Deadline: deadline}, cmp.Or(err, derr)
}

// completeZone makes paths hold in any folder, and refuses what was typed wrong.
// What is wrong in the environment is told where the zone is used.
func (g *Globals) completeZone() error {
	if path, ok := strings.CutPrefix(g.Zone, "file:"); ok && path != "" {
		abs, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		g.Zone = "file:" + abs
	}
	if _, _, err := parseCode(g.ZoneCode); err != nil && g.ZoneCode != os.Getenv("THAW_ZONE_CODE") {
		return err
	}
	if _, err := parseDeadline(g.ZoneDeadline); err != nil && g.ZoneDeadline != os.Getenv("THAW_ZONE_DEADLINE") {
		return err
	}
	return nil
}

// zoneArgs hands the zone on to another process of this program, which may not
// take another one from its environment.
func (g *Globals) zoneArgs() []string {
	if g.Zone == "" {
		return []string{"--zone=", "--zone-code=", "--zone-deadline="}
	}
	args := []string{"--zone=" + g.Zone, "--zone-code=" + g.ZoneCode, "--zone-deadline=" + g.ZoneDeadline}
	for flag, file := range map[string]string{"--zone-ca=": g.ZoneCA, "--zone-cert=": g.ZoneCert, "--zone-key=": g.ZoneKey} {
		if file != "" { // an empty path would be made one of a folder
			args = append(args, flag+file)
		}
	}
	slices.Sort(args) // they are also the zone's name
	return args
}

// zoneClient gives a client of the zone, or nil if there is none. worker asks
// for leases, and bears with a list that cannot be read: whoever started it has
// read it. "" does neither. The caller closes it.
func (g *Globals) zoneClient(worker string) (*zone.Client, error) {
	if g.Zone == "" {
		return nil, nil
	}
	o, err := g.zoneOptions()
	if err != nil {
		return nil, err
	}
	if o.TLS, err = g.zoneTLSConfig(); err != nil {
		return nil, err
	}
	o.Worker, o.Patient, o.Warn = worker, worker != "", func(err error) { g.logger().Warn(text.Line(err.Error())) }
	c, err := zone.NewClient(o)
	if err != nil {
		return nil, fmt.Errorf("--zone: %w", err)
	}
	return c, nil
}

// checkZone refuses what a fetcher would only say in its log.
func (g *Globals) checkZone() error {
	c, err := g.zoneClient("")
	if c != nil {
		_ = c.Close()
	}
	return err
}

// zoneWorker is a name for a process that fetches, of which there may be many
// on a machine.
func zoneWorker() string { return rand.Text() }

// zoneTLSConfig gives what the flags say, or nil for none.
func (g *Globals) zoneTLSConfig() (*tls.Config, error) {
	switch {
	case (g.ZoneCert == "") != (g.ZoneKey == ""):
		return nil, errors.New("--zone-cert and --zone-key: give both or none")
	case g.ZoneCert != "" && g.ZoneCA == "":
		return nil, errors.New("--zone-cert: without --zone-ca the nodes have no TLS to show it to")
	case g.ZoneCA == "":
		return nil, nil
	}
	pool, err := authorities(g.ZoneCA)
	if err != nil {
		return nil, fmt.Errorf("--zone-ca: %w", err)
	}
	config := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
	if g.ZoneCert != "" {
		cert, err := tls.LoadX509KeyPair(g.ZoneCert, g.ZoneKey)
		if err != nil {
			return nil, fmt.Errorf("--zone-cert, --zone-key: %w", err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	return config, nil
}

// authorities reads certificates.
func authorities(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return pool, nil
}

// zoneFirst reads chunks from the zone, and from the origin what it does not
// give.
type zoneFirst struct {
	zone   chunk.Source
	origin chunk.Source

	fromZone, fromOrigin atomic.Int64 // chunks
}

// Get implements chunk.Source.
func (z *zoneFirst) Get(ctx context.Context, name chunk.Name) ([]byte, error) {
	if data, err := z.zone.Get(ctx, name); err == nil {
		z.fromZone.Add(1)
		return data, nil
	}
	data, err := z.origin.Get(ctx, name)
	if err == nil {
		z.fromOrigin.Add(1)
	}
	return data, err
}
