package cache

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"thaw/internal/testleak"
)

// childEnv tells the test binary to be a child, and how.
const childEnv = "THAW_CACHE_CHILD"

func TestMain(m *testing.M) {
	if how := os.Getenv(childEnv); how != "" {
		if err := child(strings.Fields(how)); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
		return
	}
	testleak.Main(m)
}

// child is a process of its own that uses a folder: "once DIR" fills the
// chunks in order and writes down each get; "churn DIR SEED" fills chunks at
// random through a folder of little room until its input ends, and prints a
// line for each; "serve DIR SOCKET" is a fetcher.
func child(how []string) error {
	switch how[0] {
	case "once":
		f, err := openPatiently(how[1], 1<<20)
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, os.Stdin) // all start at once
		return fillOnce(f)
	case "churn":
		seed, err := strconv.Atoi(how[2])
		if err != nil {
			return err
		}
		return churn(how[1], uint64(seed))
	case "serve":
		f, err := openPatiently(how[1], 1<<20)
		if err != nil {
			return err
		}
		return childServe(f, how[2])
	}
	return fmt.Errorf("what is %q", how)
}

const onceChunks = 50

func fillOnce(f *Folder) error {
	for i := range onceChunks {
		c := sample(i, small)
		got, _, err := f.Fill(context.Background(), c.Name, small, func(context.Context) ([]byte, error) {
			log, err := os.OpenFile(f.dir+".gets", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			if err != nil {
				return nil, err
			}
			defer log.Close()
			_, err = fmt.Fprintln(log, c.Name)
			return bytes.Clone(c.Data), err
		})
		if err != nil || !bytes.Equal(got, c.Data) {
			return fmt.Errorf("chunk %d: wrong bytes or %w", i, err)
		}
	}
	return nil
}

// churnLimit holds a quarter of the chunks that churn fills.
const churnLimit = 10 * small

func churn(dir string, seed uint64) error {
	f, err := openPatiently(dir, churnLimit)
	if err != nil {
		return err
	}
	f.named = seed%3 == 0
	f.Warn = func(err error) { fmt.Fprintln(os.Stderr, err) }
	done := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); close(done) }()
	draw := rand.New(rand.NewPCG(seed, 1))
	for {
		c := sample(draw.IntN(40), small)
		got, _, err := f.Fill(context.Background(), c.Name, small, giving(c))
		if err != nil || !bytes.Equal(got, c.Data) {
			return fmt.Errorf("wrong bytes or %w", err)
		}
		select {
		case <-done:
			return nil
		default:
			fmt.Println(f.failures.Load())
		}
	}
}

func childServe(f *Folder, socket string) error {
	_ = os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	o := new(fakeOrigin)
	for i := range 100 {
		c := sample(i, small)
		if err := o.Plant(context.Background(), c.Name, c.Data); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	return NewFetcher(FetcherOptions{Folder: f, Upstreams: upstream(o)}).Serve(context.Background(), l)
}

// process is a child under way.
type process struct {
	*exec.Cmd
	in  io.Closer
	out *bufio.Reader
	err bytes.Buffer
}

func start(t testing.TB, how ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0])}
	p.Env = append(os.Environ(), childEnv+"="+strings.Join(how, " "))
	in, err := p.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in, p.out, p.Stderr = in, bufio.NewReader(out), &p.err
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	return p
}

// end closes the child's input, and waits for it to end well.
func (p *process) end(t testing.TB) {
	t.Helper()
	_ = p.in.Close()
	_, _ = io.Copy(io.Discard, p.out)
	if err := p.Wait(); err != nil || p.err.Len() > 0 {
		t.Errorf("child: %v %s", err, p.err.String())
	}
}

// kill kills the child, and tells whether it was alive until then.
func (p *process) kill() (hit bool) {
	_ = p.Process.Kill()
	_, _ = io.Copy(io.Discard, p.out)
	_ = p.Wait()
	status, ok := p.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled()
}

// line reads what the child prints next.
func (p *process) line(t testing.TB) string {
	t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("child: %v %s", err, p.err.String())
	}
	return strings.TrimSpace(s)
}

// TestOneGetsOfProcesses: of four processes that want the same chunks at the
// same time, one gets each.
func TestOneGetsOfProcesses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	var all []*process
	for range 4 {
		all = append(all, start(t, "once", dir))
	}
	for _, p := range all {
		_ = p.in.Close()
	}
	for _, p := range all {
		p.end(t)
	}
	log, err := os.ReadFile(dir + ".gets")
	if n := bytes.Count(log, []byte("\n")); err != nil || n != onceChunks {
		t.Errorf("%d gets of %d chunks (%v)", n, onceChunks, err)
	}
	f := open(t, dir, 1<<20)
	if n := checkFolder(t, f); n != onceChunks {
		t.Errorf("%d chunks stored", n)
	}
}

// TestKill kills one of two processes that fill and evict, at 30 moments. What
// is left is right at once, but for unfinished files, which OpenFolder removes.
func TestKill(t *testing.T) {
	const rounds = 30
	dir := filepath.Join(t.TempDir(), "cache")
	draw := rand.New(rand.NewPCG(1, 2))
	hits := 0
	for round := range rounds {
		victim, other := start(t, "churn", dir, strconv.Itoa(round)), start(t, "churn", dir, strconv.Itoa(round+1))
		for range draw.IntN(60) {
			victim.line(t)
		}
		if round%2 == 0 {
			spin(time.Duration(draw.IntN(2000)) * time.Microsecond)
		}
		if victim.kill() {
			hits++
		}
		for range 20 { // the other is not disturbed
			if failures := other.line(t); failures != "0" {
				t.Errorf("round %d: %s chunks were not kept", round, failures)
			}
		}
		if round%3 == 0 {
			other.kill()
		} else {
			other.end(t)
		}
		checkFolder(t, open(t, dir, churnLimit))
	}
	if hits < rounds*9/10 {
		t.Errorf("%d of %d kills hit", hits, rounds)
	}
	countsAgain(t, dir)
}

// countsAgain fills a folder until it evicts: then the counter is exact.
func countsAgain(t *testing.T, dir string) {
	t.Helper()
	f := open(t, dir, churnLimit)
	for i := 100; f.evicted.Load() == 0; i++ {
		filled(t, f, sample(i, small))
	}
	if _, total, _ := f.scan(); total != f.Stats().Used {
		t.Errorf("%d bytes stored, %d counted", total, f.Stats().Used)
	}
}

// spin passes time without giving up the processor, to kill between lines.
func spin(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
	}
}

// TestFetcherKilled kills the fetcher's process and starts another, again and
// again, while clients read.
func TestFetcherKilled(t *testing.T) {
	socketDir, err := os.MkdirTemp("", "thaw")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(socketDir)
	dir, socket := filepath.Join(t.TempDir(), "cache"), filepath.Join(socketDir, "s")
	p := start(t, "serve", dir, socket)
	p.line(t)
	var readers sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		c := newClient(t, ClientOptions{Folder: dir, Dial: dialer(socket), Memory: 1, Files: 1})
		readers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
					read(t, c, sample(i%100, small))
				}
			}
		})
	}
	for range 5 {
		if err := os.RemoveAll(dir); err != nil { // so that the fetcher is needed
			t.Log(err) // it is being filled
		}
		spin(5 * time.Millisecond)
		if !p.kill() {
			t.Errorf("the fetcher had ended: %s", p.err.String())
		}
		p = start(t, "serve", dir, socket)
		p.line(t)
	}
	close(done)
	readers.Wait()
}
