package bench

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	"syscall"
	"testing"
	"time"

	"thaw/chunk"
	"thaw/internal/testoci"
	"thaw/zone"
	"thaw/zone/node"
)

const (
	// zoneStripes is what both servers hold, 64 MiB: more than the processor's
	// caches do.
	zoneStripes = 512
	// zoneRounds are taken in turns, of zoneRound each.
	zoneRounds = 12
	zoneRound  = time.Second
)

// BenchmarkZoneNode gets stripes of 128 KiB from a node's memory and from nginx,
// which sends the same bytes from a tmpfs with sendfile, in turns. Whoever asks
// is a third process, so that what is counted of each server is its own.
func BenchmarkZoneNode(b *testing.B) {
	asRoot(b, "nginx")
	ids, stripes := zoneFill(zoneStripes)
	ours := startNode(b, "--memory", "256MiB")
	for i, id := range ids {
		ours.put(b, id, stripes[i])
	}
	theirs := startNginx(b, ids, stripes)
	for _, conns := range []int{1, 8} {
		b.Run(fmt.Sprintf("GET/%d", conns), func(b *testing.B) { zoneCompare(b, conns, ours, theirs) })
	}
	b.Run("PUT", func(b *testing.B) { zonePut(b, ours) })
	// Of the server alone, from the request to the last byte that the kernel took.
	s := ours.stats(b)
	b.Logf("in the server: GET p50 %v p99 %v p99.99 %v, PUT p50 %v p99 %v p99.99 %v",
		s.Gets.FromMemory.Quantile(.5), s.Gets.FromMemory.Quantile(.99), s.Gets.FromMemory.Quantile(.9999),
		s.Puts.Times.Quantile(.5), s.Puts.Times.Quantile(.99), s.Puts.Times.Quantile(.9999))
}

// zoneFill makes stripes, of 4 of 5 of a 512 KiB chunk.
func zoneFill(n int) (ids []zone.StripeID, stripes [][]byte) {
	for i := range n {
		id := zoneID(i)
		s := zone.Stripe{Name: id.Name, K: id.K, N: id.N, ChunkSize: 512 << 10, Payload: testoci.Noise(uint64(i), 128<<10)}
		ids, stripes = append(ids, s.ID()), append(stripes, s.Append(nil))
	}
	return ids, stripes
}

func zoneID(i int) zone.StripeID {
	return zone.StripeID{Name: chunk.Name(sha256.Sum256([]byte{byte(i), byte(i >> 8)})), K: 4, N: 5}
}

// zoneServer is a server with the processes that it is.
type zoneServer struct {
	address string
	pids    []int
}

// startNode starts a node of the program.
func startNode(b testing.TB, args ...string) *zoneServer {
	b.Helper()
	cmd := exec.Command(program(b), append([]string{"--state", b.TempDir(), "zone", "--listen", "127.0.0.1:0"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	try(b, err, cmd.Start())
	b.Cleanup(func() { try(b, cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()) })
	line, err := bufio.NewReader(out).ReadString('\n')
	try(b, err)
	return &zoneServer{strings.TrimSpace(line), []int{cmd.Process.Pid}}
}

func (s *zoneServer) put(b testing.TB, id zone.StripeID, stripe []byte) {
	b.Helper()
	r, err := http.NewRequest(http.MethodPut, "http://"+s.address+id.Path(), bytes.NewReader(stripe))
	try(b, err)
	res, err := http.DefaultClient.Do(r)
	try(b, err)
	try(b, res.Body.Close())
	if res.StatusCode != http.StatusCreated {
		b.Fatal(res.Status)
	}
}

func (s *zoneServer) stats(b testing.TB) (st node.Stats) {
	b.Helper()
	res, err := http.Get("http://" + s.address + "/status")
	try(b, err)
	defer res.Body.Close()
	try(b, json.NewDecoder(res.Body).Decode(&st))
	return st
}

// startNginx starts nginx as others would set it up for this: files that stay
// open, sendfile, no log, two workers.
func startNginx(b testing.TB, ids []zone.StripeID, stripes [][]byte) *zoneServer {
	b.Helper()
	root, err := os.MkdirTemp("/dev/shm", "thaw-bench")
	try(b, err, os.Chmod(root, 0o755))
	b.Cleanup(func() { try(b, os.RemoveAll(root)) })
	for i, id := range ids {
		path := filepath.Join(root, id.Path())
		try(b, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, stripes[i], 0o644))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	try(b, err)
	address := l.Addr().String()
	try(b, l.Close())
	dir := b.TempDir()
	config := fmt.Sprintf(`worker_processes 2; daemon off; user root; pid %[1]s/pid; error_log %[1]s/errors;
events { worker_connections 1024; }
http {
	sendfile on; tcp_nopush on; access_log off; keepalive_requests 1000000000; keepalive_timeout 1h;
	open_file_cache max=4096 inactive=1h; open_file_cache_valid 1h; default_type application/octet-stream;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
	server { listen %[2]s reuseport; root %[3]s; }
}`, dir, address, root)
	file := filepath.Join(dir, "nginx.conf")
	try(b, os.WriteFile(file, []byte(config), 0o600))
	cmd := exec.Command("nginx", "-p", dir, "-c", file)
	cmd.Stderr = os.Stderr
	try(b, cmd.Start())
	b.Cleanup(func() { try(b, cmd.Process.Signal(syscall.SIGQUIT), cmd.Wait()) })
	s := &zoneServer{address: address}
	for end := time.Now().Add(time.Minute); len(s.pids) < 2; {
		if time.Now().After(end) {
			b.Fatal("nginx has not started")
		}
		if c, err := net.Dial("tcp", address); err == nil {
			try(b, c.Close())
			children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
			try(b, err)
			s.pids = nil
			for pid := range strings.FieldsSeq(string(children)) {
				n, err := strconv.Atoi(pid)
				try(b, err)
				s.pids = append(s.pids, n)
			}
		}
	}
	return s
}

// cpu is the time that the server has run, from the scheduler's own count.
func (s *zoneServer) cpu(b testing.TB) (sum time.Duration) {
	b.Helper()
	for _, pid := range s.pids {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		try(b, err)
		for _, t := range threads {
			text, err := os.ReadFile(t)
			try(b, err)
			ran, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
			try(b, err)
			sum += time.Duration(ran)
		}
	}
	return sum
}

// zoneRun is what one round against one server came to.
type zoneRun struct {
	gets             float64 // a second
	cpu              time.Duration
	p50, p99, p99_99 time.Duration
}

// load asks a server from another process for one round.
func (s *zoneServer) load(b testing.TB, conns int, method string, seed uint64) zoneRun {
	b.Helper()
	before := s.cpu(b)
	cmd := exec.Command("/proc/self/exe", s.address, strconv.Itoa(conns), method, strconv.FormatUint(seed, 10))
	cmd.Env = append(os.Environ(), role+"=load", "GOGC=off", "GOMEMLIMIT=512MiB")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	try(b, err)
	used := s.cpu(b) - before
	var times []time.Duration
	try(b, json.Unmarshal(out, &times))
	slices.Sort(times)
	n := len(times)
	if n == 0 {
		b.Fatal("not one answer")
	}
	at := func(q float64) time.Duration { return times[min(int(q*float64(n)), n-1)] }
	return zoneRun{float64(n) / zoneRound.Seconds(), used / time.Duration(n), at(.5), at(.99), at(.9999)}
}

// zoneCompare takes rounds in turns, and reports the node beside nginx.
func zoneCompare(b *testing.B, conns int, ours, theirs *zoneServer) {
	pauses := gcPauses(b, ours)
	for b.Loop() {
		var rate, cpu, tail Ratios
		var all [2][]zoneRun
		for round := range zoneRounds {
			a, n := ours.load(b, conns, http.MethodGet, uint64(round)), theirs.load(b, conns, http.MethodGet, uint64(round))
			rate, cpu = append(rate, a.gets/n.gets), append(cpu, float64(a.cpu)/float64(n.cpu))
			tail = append(tail, (float64(a.p99_99)/float64(a.p50))/(float64(n.p99_99)/float64(n.p50)))
			all[0], all[1] = append(all[0], a), append(all[1], n)
		}
		b.Logf("%d connections, node ÷ nginx: GET/s %v, CPU per GET %v, p99.99÷p50 %v", conns, rate, cpu, tail)
		for i, name := range []string{"node", "nginx"} {
			m := medianRun(all[i])
			b.Logf("%-5s %6.0f GET/s, CPU %v, p50 %v, p99 %v, p99.99 %v", name, m.gets, m.cpu, m.p50, m.p99, m.p99_99)
		}
	}
	after := gcPauses(b, ours)
	b.Logf("collector: %.0f cycles, %v of pauses in all", after.count-pauses.count, time.Duration((after.sum-pauses.sum)*1e9))
}

// medianRun gives the median of each figure.
func medianRun(runs []zoneRun) zoneRun {
	mid := func(of func(zoneRun) float64) float64 {
		var v []float64
		for _, r := range runs {
			v = append(v, of(r))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	d := func(of func(zoneRun) time.Duration) time.Duration {
		return time.Duration(mid(func(r zoneRun) float64 { return float64(of(r)) }))
	}
	return zoneRun{
		mid(func(r zoneRun) float64 { return r.gets }), d(func(r zoneRun) time.Duration { return r.cpu }), d(func(r zoneRun) time.Duration { return r.p50 }),
		d(func(r zoneRun) time.Duration { return r.p99 }), d(func(r zoneRun) time.Duration { return r.p99_99 }),
	}
}

func zonePut(b *testing.B, s *zoneServer) {
	for b.Loop() {
		var all []zoneRun
		for round := range zoneRounds / 2 {
			all = append(all, s.load(b, 2, http.MethodPut, 1000+uint64(round)))
		}
		m := medianRun(all)
		b.Logf("%6.0f PUT/s, CPU %v, p50 %v, p99 %v, p99.99 %v", m.gets, m.cpu, m.p50, m.p99, m.p99_99)
	}
}

type gcCount struct{ count, sum float64 }

// gcPauses reads what the collector has stopped the server for.
func gcPauses(b testing.TB, s *zoneServer) (c gcCount) {
	b.Helper()
	res, err := http.Get("http://" + s.address + "/metrics")
	try(b, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	try(b, err)
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch v, _ := strconv.ParseFloat(value, 64); name { // 0 for what is no number
		case "go_gc_duration_seconds_count":
			c.count = v
		case "go_gc_duration_seconds_sum":
			c.sum = v
		}
	}
	return c
}

// zoneLoad is the process that asks: ADDRESS CONNECTIONS METHOD SEED. It prints
// the time that each answer took, in nanoseconds.
func zoneLoad() error {
	conns, err := strconv.Atoi(os.Args[2])
	if err != nil {
		return err
	}
	seed, err := strconv.ParseUint(os.Args[4], 10, 64)
	if err != nil {
		return err
	}
	_, stripes := zoneFill(8) // enough to put
	ids := make([]zone.StripeID, zoneStripes)
	for i := range ids {
		ids[i] = zoneID(i)
	}
	var work sync.WaitGroup
	times, errs := make([][]time.Duration, conns), make([]error, conns)
	until := time.Now().Add(zoneRound)
	for i := range conns {
		work.Go(func() {
			a := asker{random: rand.New(rand.NewPCG(seed, uint64(i))), ids: ids, stripes: stripes, put: os.Args[3] == http.MethodPut}
			times[i], errs[i] = a.ask(os.Args[1], until)
		})
	}
	work.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(slices.Concat(times...))
}

// asker is one connection, with as little work as HTTP takes.
type asker struct {
	random  *rand.Rand
	ids     []zone.StripeID
	stripes [][]byte
	put     bool
	buf     []byte
}

func (a *asker) ask(address string, until time.Time) (times []time.Duration, err error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	a.buf = make([]byte, 256<<10)
	for {
		began := time.Now()
		if began.After(until) {
			return times, nil
		}
		i := a.random.IntN(len(a.ids))
		if a.put {
			err = a.fill(c, i)
		} else {
			err = a.get(c, i)
		}
		if err != nil {
			return nil, err
		}
		times = append(times, time.Since(began))
	}
}

// get reads one answer and compares its length.
func (a *asker) get(c net.Conn, i int) error {
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: zone\r\n\r\n", a.ids[i].Path()); err != nil {
		return err
	}
	have, want := 0, -1
	for have != want {
		n, err := c.Read(a.buf[have:])
		if err != nil {
			return err
		}
		have += n
		if head := bytes.Index(a.buf[:have], []byte("\r\n\r\n")); want < 0 && head >= 0 {
			if !bytes.HasPrefix(a.buf, []byte("HTTP/1.1 200 ")) {
				return fmt.Errorf("answer %q", a.buf[:head])
			}
			want = head + 4 + len(a.stripes[0])
		}
	}
	return nil
}

// fill puts a stripe that the node has not got: one of other numbers.
func (a *asker) fill(c net.Conn, i int) error {
	i %= len(a.stripes)
	s, err := zone.ParseStripe(a.stripes[i])
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint64(s.Name[:], a.random.Uint64())
	b := s.Append([]byte(fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: zone\r\nContent-Length: %d\r\n\r\n", s.ID().Path(), len(a.stripes[i]))))
	if _, err := c.Write(b); err != nil {
		return err
	}
	n, err := c.Read(a.buf)
	if err == nil && !bytes.HasPrefix(a.buf[:n], []byte("HTTP/1.1 201 ")) {
		err = fmt.Errorf("answer %q", a.buf[:n])
	}
	return err
}
