package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/cache"
	"thaw/internal/faults"
)

const (
	// What make soak sets: how long, and the seed of an earlier run.
	soakTimeEnv, soakSeedEnv = "THAW_SOAK", "THAW_SOAK_SEED"

	soakShort = 15 * time.Second // in all tests

	soakReaders = 3 // besides a container
	// A read fails by soakDeadline; what takes soakSlack longer hangs.
	soakDeadline, soakSlack = 30 * time.Second, 60 * time.Second
	// soakFlags have L1 hold a part of the image, so that tiers beyond are
	// asked all the time, and a zone answer in time on a machine that is busy.
	soakCache, soakZone = "4MiB", "10s"
)

// soaking is a soak under way: rounds of faults, drawn from a seed, while
// readers read.
type soaking struct {
	*zoneFleet
	disk   string // file system of L1; "" without root
	draw   *rand.Rand
	wrecks map[string]func(*member) func()
	lapses map[string]func(*member)

	faults map[string]int // by kind
	rounds int

	over                      atomic.Bool
	readers                   sync.WaitGroup
	turns                     []*turn
	reads, bytes              atomic.Int64
	failures, cutOff, refused atomic.Int64 // reads; starts that failed

	mu  sync.Mutex
	now moment   // guarded by mu
	bad []string // guarded by mu: what must not be
}

// moment tells what may happen to reads. Numbers grow.
type moment struct {
	beyond, origin bool // more is broken than the redundancy covers; the origin is
	beyonds        int
	origins        int
	kills          int // of agents
	fetchers       int // killed, of containers
}

// turn is where a reader is.
type turn struct {
	done  atomic.Int64 // reads, and starts that failed
	since atomic.Int64 // when the one under way began, ns
}

// TestSoak breaks all kinds of things, several at a time, while readers read
// and compare. THAW_SOAK says for how long.
func TestSoak(t *testing.T) {
	length, seed := soakShort, uint64(1)
	if text := os.Getenv(soakTimeEnv); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
		seed = rand.Uint64N(1 << 32)
	}
	if text := os.Getenv(soakSeedEnv); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Printf("soak: seed %d, %v\n", seed, length)
	s := newSoak(t, seed)
	s.begin()
	for end := time.Now().Add(length); time.Now().Before(end) && s.fine(); s.rounds++ {
		s.round()
	}
	s.end()
	s.say(seed, length)
}

func newSoak(t *testing.T, seed uint64) *soaking {
	s := &soaking{draw: rand.New(rand.NewPCG(seed, 0)), faults: map[string]int{}}
	dir := filepath.Join(t.TempDir(), "l1")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		small(t, dir, "64m")
		s.disk = dir
	}
	s.zoneFleet = newFleet(t, filepath.Join(dir, "cache"))
	s.machine.flags = append(s.machine.flags, "--cache-size", soakCache, "--zone-deadline", soakZone, "--origin-deadline", soakDeadline.String())
	s.wrecks = wrecks(s.zoneFleet)
	s.lapses = relapses(s.zoneFleet, s.oldFlash())
	s.startFetcher()
	s.all()
	return s
}

// begin starts the readers.
func (s *soaking) begin() {
	for i := range soakReaders {
		s.reader(func(t *turn) {
			draw := rand.New(rand.NewPCG(uint64(i), 2))
			c := s.client(soakDeadline)
			defer c.Close()
			for !s.over.Load() {
				name := s.names[draw.IntN(len(s.names))]
				before := t.begin(s)
				err := s.read(context.Background(), c, name)
				s.judge(before, err, int64(len(s.chunks[name])))
				t.done.Add(1)
			}
		})
	}
	if os.Geteuid() == 0 {
		s.reader(s.containers)
	}
	s.t.Cleanup(func() { s.over.Store(true); s.readers.Wait() })
}

func (s *soaking) reader(read func(*turn)) {
	t := &turn{}
	t.since.Store(time.Now().UnixNano())
	s.turns = append(s.turns, t)
	s.readers.Go(func() { read(t) })
}

func (t *turn) begin(s *soaking) moment {
	t.since.Store(time.Now().UnixNano())
	return s.moment()
}

func (s *soaking) moment() moment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *soaking) change(change func(*moment)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.now)
}

func (s *soaking) wrong(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.bad) < 20 {
		s.bad = append(s.bad, fmt.Sprintf(format, args...))
	}
}

func (s *soaking) fine() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.bad) == 0
}

// judge counts a read that began at a moment, and says whether it may have
// failed.
func (s *soaking) judge(before moment, err error, size int64) {
	after := s.moment()
	switch {
	case errors.Is(err, errWrong):
		s.wrong("%v", err)
	case err == nil:
		s.reads.Add(1)
		s.bytes.Add(size)
	case before.beyond || after.beyonds != before.beyonds:
		s.failures.Add(1)
	case errors.Is(err, errCut) && after.kills != before.kills:
		s.cutOff.Add(1)
	default:
		s.wrong("a read failed though not more was broken than may be: %v", err)
	}
}

// errCut is of a container whose agent was killed.
var errCut = errors.New("the container has ended, or lost its disk")

// containers starts one container after the other, each with an agent of its
// own, and reads in it.
func (s *soaking) containers(t *turn) {
	draw := rand.New(rand.NewPCG(9, 9))
	for !s.over.Load() {
		before := t.begin(s)
		cmd := s.command("run", "-i", "app", "/bin/inside", "serve")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		in, ierr := cmd.StdinPipe()
		pipe, oerr := cmd.StdoutPipe()
		if err := errors.Join(ierr, oerr, cmd.Start()); err != nil {
			s.wrong("starting a container: %v", err)
			return
		}
		late := time.AfterFunc(soakDeadline+soakSlack, func() { _ = cmd.Process.Kill(); _ = pipe.Close() }) // for each read anew
		out := bufio.NewReader(pipe)
		line, err := out.ReadString('\n')
		if err == nil && line == "ready\n" {
			s.inside(t, draw, func(question string) (string, error) {
				late.Reset(soakDeadline + soakSlack)
				_, werr := fmt.Fprintln(in, question)
				line, rerr := out.ReadString('\n')
				return strings.TrimSuffix(line, "\n"), errors.Join(werr, rerr)
			}, before.kills)
		}
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		werr := cmd.Wait()
		late.Stop()
		after := s.moment()
		switch {
		case line == "ready\n" && (werr == nil || after.kills != before.kills):
		case line == "ready\n" && (before.beyond || after.beyonds != before.beyonds): // the program's own pages did not come
			s.cutOff.Add(1)
		case line != "ready\n" && (before.origin || after.origins != before.origins || after.kills != before.kills || after.fetchers != before.fetchers):
			s.refused.Add(1)
		default:
			s.wrong("a container: %v %q\n%s", werr, line, &stderr)
		}
		t.done.Add(1)
	}
}

// inside reads files in a container, until that ends or enough have been read.
func (s *soaking) inside(t *turn, draw *rand.Rand, ask func(question string) (string, error), kills int) {
	for range 2 * dataFiles {
		if s.over.Load() {
			return
		}
		before := t.begin(s)
		before.kills = kills // since the container's start
		i := draw.IntN(dataFiles)
		s.gate.RLock()
		line, err := ask("sum " + dataPath(i))
		s.gate.RUnlock()
		over := err != nil
		switch {
		case err != nil || strings.HasPrefix(line, "error: "):
			err = fmt.Errorf("%w: %s %v", errCut, line, err)
		case line != dataSum(1, i):
			err = fmt.Errorf("%w: %s: %s", errWrong, dataPath(i), line)
		}
		s.judge(before, err, dataBytes)
		t.done.Add(1)
		if over {
			return
		}
	}
}

// round breaks some things for a while, mends them, and waits until all
// readers read again.
func (s *soaking) round() {
	broken := []int{0, 1, 1, 1, 1, 1, 1, 2, 2, 3, fleetNodes}[s.draw.IntN(11)]
	origin := s.draw.IntN(5) < 2
	if origin && broken <= fleetSpare {
		s.warm() // or the zone would need the origin
	}
	beyond := origin && broken > fleetSpare
	s.change(func(m *moment) {
		if m.beyond, m.origin = beyond, origin; beyond {
			m.beyonds++
		}
		if origin {
			m.origins++
		}
	})
	var mends []func()
	if s.draw.IntN(5) < 2 {
		mends = append(mends, s.breakCache()) // while reads end soon
	}
	for _, i := range s.draw.Perm(fleetNodes)[:broken] {
		mends = append(mends, s.breakNode(s.nodes[i]))
	}
	if origin {
		mends = append(mends, s.breakOrigin())
	}
	if s.draw.IntN(5) < 2 {
		s.killOne()
	}
	s.pause(time.Duration(300+s.draw.IntN(1200)) * time.Millisecond)
	for _, mend := range slices.Backward(mends) {
		mend()
	}
	s.change(func(m *moment) { m.beyond, m.origin = false, false })
	s.weighAll()
	s.barrier()
}

// pause waits, and looks at the readers' clocks.
func (s *soaking) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
	s.clocks()
}

// clocks tells whether no reader hangs.
func (s *soaking) clocks() bool {
	for i, t := range s.turns {
		if took := time.Since(time.Unix(0, t.since.Load())); took > soakDeadline+soakSlack {
			s.wrong("reader %d hangs since %v", i, took)
			return false
		}
	}
	return true
}

// barrier waits until no read is under way that was when it was called, and
// each reader has had one more.
func (s *soaking) barrier() {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for _, t := range s.turns {
		for end := t.done.Load() + 2; t.done.Load() < end && s.fine() && s.clocks(); <-tick.C {
		}
	}
}

// pick draws a key.
func pick[V any](draw *rand.Rand, m map[string]V) string {
	return slices.Sorted(maps.Keys(m))[draw.IntN(len(m))]
}

func (s *soaking) breakNode(n *member) (mend func()) {
	kinds := len(s.wrecks) + len(s.lapses)
	if s.draw.IntN(kinds) < len(s.wrecks) {
		kind := pick(s.draw, s.wrecks)
		s.faults["node "+kind]++
		return s.wrecks[kind](n)
	}
	kind := pick(s.draw, s.lapses)
	s.faults["node back "+kind]++
	n.again(func() { s.lapses[kind](n) })
	return func() {}
}

func (s *soaking) breakOrigin() (mend func()) {
	if s.draw.IntN(4) == 0 {
		s.faults["origin 503"]++
		rate := []float64{0.01, 0.5, 1}[s.draw.IntN(3)]
		s.front.Set(faults.Random(s.draw.Uint64(), rate, 1<<20, faults.Fault{Kind: faults.Status, Status: http.StatusServiceUnavailable}))
		return func() { s.front.Set(nil) }
	}
	links := map[string]faults.Link{
		"down": {Refuse: true}, "silent": {Stall: true}, "slow": {Delay: 100 * time.Millisecond, Bandwidth: 4 << 20},
		"flipping": {Flip: 1e-6, Body: true}, "flipping all": {Flip: 1e-4}, "resetting": {ResetAfter: 1 << 20, Anywhere: true}, "cutting": {CutAfter: 1 << 20, Anywhere: true},
	}
	kind := pick(s.draw, links)
	s.faults["origin "+kind]++
	s.way.Set(links[kind])
	if links[kind].Refuse {
		s.way.Cut()
	}
	return func() { s.way.Set(faults.Link{}); s.way.Cut() }
}

func (s *soaking) breakCache() (mend func()) {
	hurts := map[string]func() (mend func(), err error){}
	for kind, hurt := range map[string]func(string) error{"emptied": emptied, "truncated": truncated, "replaced": replaced} {
		hurts[kind] = func() (func(), error) { return func() {}, hurt(s.cache) }
	}
	if s.disk != "" {
		hurts["filled"] = func() (func(), error) {
			return func() { _ = os.Remove(filepath.Join(s.disk, "filler")) }, fill(s.disk)
		}
		hurts["read-only"] = func() (func(), error) {
			s.readOnly(s.disk, true)
			return func() { s.readOnly(s.disk, false) }, nil
		}
	}
	kind := pick(s.draw, hurts)
	s.faults["L1 "+kind]++
	mend, err := hurts[kind]()
	if err != nil {
		s.t.Fatalf("L1 %s: %v", kind, err)
	}
	return mend
}

// killOne kills a process that reads depend on.
func (s *soaking) killOne() {
	if s.draw.IntN(2) == 0 {
		s.faults["fetcher killed"]++
		s.endFetcher()
		s.startFetcher()
		return
	}
	what := []string{"thaw-agent", " fetcher"}[s.draw.IntN(2)]
	all, err := s.processes()
	if err != nil {
		s.t.Fatal(err)
	}
	for pid, args := range all {
		if !strings.Contains(args, what) || pid == s.fetcher.Process.Pid {
			continue
		}
		killed, note := "container's fetcher killed", func(m *moment) { m.fetchers++ }
		if what == "thaw-agent" {
			killed, note = "agent killed", func(m *moment) { m.kills++ }
		}
		s.faults[killed]++
		s.weigh(strings.TrimPrefix(strings.TrimSpace(what), "thaw-"), pid)
		s.change(note)
		_ = unix.Kill(pid, unix.SIGKILL) // it may have ended
		s.change(note)                   // also for who began in between
		return
	}
}

// weighAll notes the memory of all processes.
func (s *soaking) weighAll() {
	all, err := s.processes()
	if err != nil {
		s.t.Fatal(err)
	}
	for pid, args := range all {
		for kind, text := range map[string]string{"agent": "thaw-agent", "fetcher": " fetcher", "node": "--flash-size", "shim": "thaw-shim"} {
			if strings.Contains(args, text) {
				s.weigh(kind, pid)
			}
		}
	}
}

// end has all healed, looks at what the fetcher holds on to once nobody reads,
// and ends everything.
func (s *soaking) end() {
	if s.fine() {
		s.warm()
	}
	s.over.Store(true)
	over := make(chan struct{})
	go func() { s.readers.Wait(); close(over) }()
	select {
	case <-over:
	case <-time.After(soakDeadline + soakSlack):
		s.wrong("a reader hangs at the end")
		return
	}
	if s.fine() {
		s.healed()
		s.until("the fetcher holds on to nothing", func() bool {
			conn, err := net.Dial("unix", s.socket)
			if err != nil {
				s.t.Fatal(err)
			}
			defer conn.Close()
			n, err := cache.AskStats(s.t.Context(), conn)
			return err == nil && n.Requests == 0 && n.Fetching == 0 && n.LastTier.Busy == 0 && n.LastTier.Waiting == 0 && n.LastTier.Bytes == 0
		})
	}
	s.weighAll()
	for _, n := range s.nodes {
		s.descriptors("node", n.cmd)
		n.end(unix.SIGTERM)
	}
	s.descriptors("fetcher", s.fetcher)
	s.endFetcher()
	if out, err := exec.Command("thaw", "--state", s.state, "prune").CombinedOutput(); err != nil && os.Geteuid() == 0 {
		s.t.Logf("prune: %v %s", err, out)
	}
	if left, err := s.left(); err != nil || len(left) > 0 {
		s.wrong("left: %s, %v", strings.Join(left, "; "), err)
	}
}

// descriptors checks that a process does not lose sight of its connections. A
// fetcher keeps up to 64 open to each node.
func (s *soaking) descriptors(kind string, cmd *exec.Cmd) {
	if open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", cmd.Process.Pid)); err != nil || len(open) > 600 {
		s.wrong("a %s has %d descriptors open, %v", kind, len(open), err)
	}
}

// soakMost is what a process of a kind may take at most, in MiB: their limits
// and what the program itself takes.
func soakMost(kind string) int {
	return map[string]int{"node": 160, "fetcher": 192, "agent": 96, "shim": 64}[kind]
}

// say prints what there was in one line, and fails the test for what must not be.
func (s *soaking) say(seed uint64, length time.Duration) {
	var kinds, peaks []string
	all := 0
	for _, kind := range slices.Sorted(maps.Keys(s.faults)) {
		kinds = append(kinds, fmt.Sprintf("%s %d", kind, s.faults[kind]))
		all += s.faults[kind]
	}
	for _, kind := range slices.Sorted(maps.Keys(s.peaks)) {
		mib := s.peaks[kind] >> 10
		peaks = append(peaks, fmt.Sprintf("%s %d", kind, mib))
		if mib > soakMost(kind) {
			s.wrong("a %s took %d MiB, should be %d at most", kind, mib, soakMost(kind))
		}
	}
	verdict := "wrong bytes 0, hangs 0, leftovers 0"
	for _, bad := range s.bad {
		s.t.Error(bad)
		verdict = "NOT FINE"
	}
	fmt.Printf("soak: seed %d, %v: %d faults in %d rounds (%s); %d reads compared, %.1f GB; %d failed, all beyond the redundancy; %d cut off with their agent, %d starts refused without origin or fetcher; %s; peak memory, MiB: %s\n",
		seed, length, all, s.rounds, strings.Join(kinds, ", "), s.reads.Load(), float64(s.bytes.Load())/1e9, s.failures.Load(), s.cutOff.Load(), s.refused.Load(), verdict, strings.Join(peaks, ", "))
}
