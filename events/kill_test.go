package events_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"thaw/cluster"
	"thaw/events"
	"thaw/internal/testleak"
)

// child is the variable by which a test's own program is made something else.
const child = "THAW_EVENTS_TEST"

func TestMain(m *testing.M) {
	var err error
	switch args := strings.Fields(os.Getenv(child)); {
	case len(args) == 0:
		testleak.Main(m)
		return
	case args[0] == "server":
		err = serverMain(args[1], args[2])
	case args[0] == "runner":
		err = runnerMain(args[1])
	case args[0] == "putter":
		err = putterMain(args[1])
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// serverMain is a cluster of one server, until it is killed.
func serverMain(dir, listen string) error {
	s, err := cluster.Serve(context.Background(), cluster.ServerOptions{Dir: dir, Listen: listen, Token: token})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin) // the parent holds it open
	return errors.Join(err, s.Close())
}

// runnerMain tries events, until it is killed, and tells of those that were done.
func runnerMain(url string) error {
	c, err := cluster.Dial(context.Background(), url, token)
	if err != nil {
		return err
	}
	q, err := events.Open(context.Background(), c, events.Options{Policy: units, AckWait: time.Second})
	if err != nil {
		return err
	}
	return q.Run(context.Background(), invokerFunc(func(_ context.Context, e events.Event) events.Outcome {
		o := byNumber(e)
		if o.Kind == events.Succeeded {
			os.Stdout.WriteString(e.ID + "\n") // one write: whole lines only
		}
		return o
	}))
}

// byNumber has every third event fail at first, and every third throttled.
func byNumber(e events.Event) events.Outcome {
	n, _ := strconv.Atoi(e.ID)
	switch {
	case n%3 == 0 && e.Attempt == 0:
		return events.Outcome{Kind: events.FunctionError}
	case n%3 == 1 && e.Attempt == 0:
		return events.Outcome{Kind: events.Throttled}
	}
	return events.Outcome{Kind: events.Succeeded}
}

type process struct {
	cmd *exec.Cmd
	out *bufio.Scanner
}

func startProcess(t *testing.T, args string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), child+"="+args)
	cmd.Stderr = os.Stderr
	_, err := cmd.StdinPipe() // closed by Wait
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd, bufio.NewScanner(out)}
	t.Cleanup(p.kill)
	return p
}

// kill ends the process without a word and waits for it. More than once is fine.
func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// empty waits until nothing waits any more, now or later.
func empty(t *testing.T, c *cluster.Conn) {
	t.Helper()
	for _, name := range []string{"EVENTS", "EVENTS_LATER"} {
		eventually(t, "nothing is left in "+name, func() bool {
			s, err := c.JetStream().Stream(t.Context(), name)
			return err == nil && s.CachedInfo().State.Msgs == 0
		})
	}
}

// TestRunnerKilled: processes that try events are killed at any moment. No
// event is lost, and none is stuck.
func TestRunnerKilled(t *testing.T) {
	t.Parallel()
	s, q := openOn(t, t.TempDir(), events.Options{AckWait: time.Second})
	const all = 120
	for n := range all {
		put(t, q, event(fmt.Sprint("f", n%7), strconv.Itoa(n)))
	}
	done := map[string]bool{}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 4 {
		p := startProcess(t, "runner "+s.URL())
		for range random.IntN(25) {
			if len(done) < all-20 && p.out.Scan() {
				done[p.out.Text()] = true
			}
		}
		p.cmd.Process.Kill()
		for p.out.Scan() {
			done[p.out.Text()] = true
		}
		p.kill()
	}
	t.Logf("%d were done by processes that were killed", len(done))
	var mu sync.Mutex // guards done
	run(t, q, invokerFunc(func(_ context.Context, e events.Event) events.Outcome {
		o := byNumber(e)
		if o.Kind == events.Succeeded {
			mu.Lock()
			defer mu.Unlock()
			done[e.ID] = true
		}
		return o
	}))
	eventually(t, "all events are done", func() bool { mu.Lock(); defer mu.Unlock(); return len(done) == all })
	empty(t, dialTo(t, s.URL()))
	if l := letters(t, q); len(l) > 0 {
		t.Errorf("%d are dead, %s by %s", len(l), l[0].Event.ID, l[0].Reason)
	}
}

func dialTo(t *testing.T, url string) *cluster.Conn {
	t.Helper()
	c, err := cluster.Dial(t.Context(), url, token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// TestServerKilled: the server is killed while events are put and tried. What
// was accepted is tried, and nothing is stuck.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	sum := sha256.Sum256([]byte(strconv.Itoa(os.Getpid()))) // an address of our own: nothing takes its port meanwhile
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+sum[0]%250, sum[1], 1+sum[2]%250))
	if err != nil {
		t.Fatal(err)
	}
	listen := l.Addr().String()
	l.Close()
	start := "server " + t.TempDir() + " " + listen
	server := startProcess(t, start)
	server.out.Scan()
	q := openAt(t, "nats://"+listen, events.Options{AckWait: time.Second})
	var mu sync.Mutex // guards what follows
	accepted, done := map[string]bool{}, map[string]bool{}
	run(t, q, invokerFunc(func(_ context.Context, e events.Event) events.Outcome {
		o := byNumber(e)
		if o.Kind == events.Succeeded {
			mu.Lock()
			defer mu.Unlock()
			done[e.ID] = true
		}
		return o
	}))
	ctx, cancel := context.WithCancel(t.Context())
	var putting sync.WaitGroup
	t.Cleanup(func() { cancel(); putting.Wait() })
	putting.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			e := event(fmt.Sprint("f", n%7), strconv.Itoa(n))
			if err := q.Put(ctx, e); err == nil {
				mu.Lock()
				accepted[e.ID] = true
				mu.Unlock()
			} else if ctx.Err() == nil && !errors.Is(err, events.ErrUnavailable) {
				t.Errorf("put: %v", err)
			}
		}
	})
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(accepted) }
	for range 3 {
		before := count()
		eventually(t, "events are accepted", func() bool { return count() > before+40 })
		server.kill()
		server = startProcess(t, start)
		server.out.Scan()
	}
	before := count()
	eventually(t, "events are accepted again", func() bool { return count() > before+10 })
	cancel()
	putting.Wait()
	eventually(t, "all that was accepted is done", func() bool {
		mu.Lock()
		defer mu.Unlock()
		missing := maps.Clone(accepted)
		maps.DeleteFunc(missing, func(id string, _ bool) bool { return done[id] })
		return len(missing) == 0
	})
	empty(t, dialTo(t, "nats://"+listen))
	t.Logf("%d were accepted", len(accepted))
}
