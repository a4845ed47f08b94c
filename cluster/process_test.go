package cluster_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"thaw/cluster"
	"thaw/internal/testleak"
)

// child is the variable by which a test's own program is made something else.
const child = "THAW_CLUSTER_TEST"

func TestMain(m *testing.M) {
	switch os.Getenv(child) {
	case "":
		testleak.Main(m)
	case "server":
		os.Exit(serverMain(nil))
	case "writer":
		os.Exit(serverMain(writeOn))
	}
}

// serverMain is a server in a process of its own: options come as JSON on the
// first line of stdin, its URL goes to stdout, and it ends at the end of stdin.
func serverMain(then func(*cluster.Server) error) int {
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	var o cluster.ServerOptions
	if err == nil {
		err = json.Unmarshal(line, &o)
	}
	var s *cluster.Server
	if err == nil {
		s, err = cluster.Serve(context.Background(), o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(s.URL())
	if then != nil {
		err = then(s)
	}
	io.Copy(io.Discard, in)
	if err = errors.Join(err, s.Close()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// writeOn creates records for ever and prints the key of each that was acknowledged.
func writeOn(s *cluster.Server) error {
	ctx := context.Background()
	c, err := cluster.Dial(ctx, s.URL(), token)
	if err != nil {
		return err
	}
	r, err := c.Records(ctx, "r")
	if err != nil {
		return err
	}
	run := strconv.Itoa(os.Getpid())
	var wg sync.WaitGroup
	for writer := range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("%s/%d/%d", run, writer, i)
				if _, err := r.Create(ctx, key, []byte(key)); err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				os.Stdout.WriteString(key + "\n") // one write: whole lines only
			}
		})
	}
	wg.Wait()
	return errors.New("no writer goes on")
}

// process is a server in a process of its own.
type process struct {
	cmd *exec.Cmd
	in  io.Closer
	out *bufio.Reader
	url string
}

func startProcess(t *testing.T, kind string, o cluster.ServerOptions) *process {
	t.Helper()
	p := &process{cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), child+"="+kind)
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	b, err := json.Marshal(struct { // Warn is a function
		Dir, Listen, Token, Name, ClusterListen string
		Peers                                   []string
		Replicas                                int
	}{o.Dir, o.Listen, o.Token, o.Name, o.ClusterListen, o.Peers, o.Replicas})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(in, "%s\n", b)
	p.in, p.out = in, bufio.NewReader(out)
	p.url, err = p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("the server did not start: %v", err)
	}
	p.url = strings.TrimSpace(p.url)
	return p
}

// kill ends the process without a word and waits for it. More than once is fine.
func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// ports finds free ports on an address of loopback that nothing else uses, so
// that nothing takes them meanwhile.
func ports(t *testing.T, n int) []string {
	t.Helper()
	sum := sha256.Sum256([]byte(strconv.Itoa(os.Getpid()) + t.Name()))
	host := fmt.Sprintf("127.%d.%d.%d", 1+sum[0]%250, sum[1], 1+sum[2]%250)
	var found []string
	for range n {
		l, err := net.Listen("tcp", host+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		found = append(found, l.Addr().String())
	}
	return found
}

// three is a real cluster.
type three struct {
	servers [3]*process
	options [3]cluster.ServerOptions
}

func startThree(t *testing.T) *three {
	t.Helper()
	addresses := ports(t, 6)
	peers := addresses[3:]
	c := &three{}
	for i := range c.servers {
		c.options[i] = cluster.ServerOptions{Dir: t.TempDir(), Listen: addresses[i], Token: token, Name: "s" + strconv.Itoa(i), ClusterListen: peers[i], Peers: peers}
		c.servers[i] = startProcess(t, "server", c.options[i])
	}
	return c
}

func (c *three) url() string {
	return c.servers[0].url + "," + c.servers[1].url + "," + c.servers[2].url
}

// leader gives the server that leads a bucket's stream.
func (c *three) leader(t *testing.T, conn *cluster.Conn, bucket string) int {
	t.Helper()
	found := -1
	eventually(t, "somebody leads", func() bool {
		s, err := conn.JetStream().Stream(t.Context(), "KV_"+bucket)
		if err != nil {
			return false // elections take a while
		}
		found = slices.IndexFunc(c.options[:], func(o cluster.ServerOptions) bool { return o.Name == s.CachedInfo().Cluster.Leader })
		return found >= 0
	})
	return found
}

// TestThree: what one server does, three do, and two of them go on with it.
func TestThree(t *testing.T) {
	t.Parallel()
	three := startThree(t)
	c := dial(t, three.url())
	suite(t, c)
	t.Run("one killed", func(t *testing.T) {
		// A new bucket wants all three: these are there before one is killed.
		names := []string{"compare and swap", "list", "watch", "leases"}
		for _, name := range names {
			_, err := c.Records(t.Context(), bucket(t.Name()+"/"+name))
			is(t, err, nil)
			_, err = c.Leases(t.Context(), bucket(t.Name()+"/"+name)+"-leases", time.Hour)
			is(t, err, nil)
		}
		three.servers[1].kill()
		for _, name := range names {
			for _, of := range []string{"", "-leases"} {
				eventually(t, "one of the two leads", func() bool { return three.leader(t, c, bucket(t.Name()+"/"+name)+of) != 1 })
			}
			t.Run(name, func(t *testing.T) { parts()[name](t, c) })
		}
	})
}

// TestThreeOneKilled: while clients write, the server that leads is killed. No
// acknowledged write is lost, and writing goes on.
func TestThreeOneKilled(t *testing.T) {
	t.Parallel()
	c := startThree(t)
	first := dial(t, c.url())
	r := records(t, first)
	const writers = 3
	var mu sync.Mutex // guards acknowledged
	var acknowledged []string
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acknowledged)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { stop(); wg.Wait() })
	for w := range writers {
		own := records(t, dial(t, c.url()))
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				key := fmt.Sprintf("%d/%d", w, i)
				_, err := own.Create(ctx, key, []byte(key))
				switch {
				case err == nil:
					mu.Lock()
					acknowledged = append(acknowledged, key)
					mu.Unlock()
				case ctx.Err() != nil, errors.Is(err, cluster.ErrUnavailable): // may be there, and may not
				default:
					t.Errorf("create: %v", err)
					return
				}
			}
		})
	}
	eventually(t, "writes", func() bool { return count() > 50 })
	c.servers[c.leader(t, first, t.Name())].kill()
	before := count()
	eventually(t, "writes without the leader", func() bool { return count() > before+50 })
	stop()
	wg.Wait()
	has(t, r, acknowledged)
}

// has fails unless all keys have their values, and are listed in the end.
func has(t *testing.T, r *cluster.Records, keys []string) {
	t.Helper()
	for _, k := range keys {
		var got cluster.Record
		eventually(t, "somebody answers", func() (answered bool) {
			var err error
			got, err = r.Get(t.Context(), k)
			return !errors.Is(err, cluster.ErrUnavailable)
		})
		if string(got.Value) != k {
			t.Fatalf("%q was acknowledged and has %q", k, got.Value)
		}
	}
	eventually(t, "all are listed", func() bool {
		all, err := r.List(t.Context(), "")
		values := map[string]string{}
		for _, e := range all {
			values[e.Key] = string(e.Value)
		}
		return err == nil && !slices.ContainsFunc(keys, func(k string) bool { return values[k] != k })
	})
}

// TestKill: a server that is killed while it writes has all that it has
// acknowledged when it is started again.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var acknowledged []string
	for round := range 4 {
		p := startProcess(t, "writer", cluster.ServerOptions{Dir: dir, Token: token})
		var err error
		for range 20 + 37*round {
			line, err := p.out.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			acknowledged = append(acknowledged, strings.TrimSpace(line))
		}
		p.cmd.Process.Kill()
		for line := ""; err == nil; { // what it said before it died
			if line, err = p.out.ReadString('\n'); err == nil {
				acknowledged = append(acknowledged, strings.TrimSpace(line))
			}
		}
		p.kill()
	}
	s := serve(t, dir)
	c := dial(t, s.URL())
	t.Cleanup(func() { c.Close(); is(t, s.Close(), nil) })
	r, err := c.Records(t.Context(), "r")
	is(t, err, nil)
	has(t, r, acknowledged)
}
