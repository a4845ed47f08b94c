package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"thaw/chunk"
	"thaw/zone"
)

// patience bounds waits; nothing takes it all unless it hangs.
const patience = 3 * time.Minute

// code says which stripe of how many.
type code struct{ k, n, index int }

// stripe makes the encoded stripe of one k-of-n chunk of noise. The version
// changes the bytes and not the id.
func stripe(seed uint64, c code, size, version int) (zone.StripeID, []byte) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], seed)
	payload := make([]byte, (size+c.k-1)/c.k)
	r := rand.NewChaCha8(sha256.Sum256(append(b[:], byte(version))))
	_, _ = r.Read(payload) // it cannot fail
	s := zone.Stripe{Name: chunk.Name(sha256.Sum256(b[:])), K: uint8(c.k), N: uint8(c.n), Index: uint8(c.index), ChunkSize: uint32(size), Payload: payload}
	return s.ID(), s.Append(nil)
}

// usualStripe is one of 4 of 5 of a 512 KiB chunk.
func usualStripe(seed uint64) (zone.StripeID, []byte) { return stripe(seed, code{4, 5, 0}, 512<<10, 0) }

// open gives a node that is closed at the end of the test.
func open(t testing.TB, o Options) *Node {
	t.Helper()
	if o.Memory == 0 {
		o.Memory = 8 << 20
	}
	if o.Warn == nil {
		o.Warn = func(err error) { t.Logf("warning: %v", err) }
	}
	n, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// front is a way to reach a node: its URL, and who asks.
type front struct {
	*http.Client
	url string
}

// fronts are the protocols that a node speaks.
func fronts() map[string]func(testing.TB, *Node) front {
	return map[string]func(testing.TB, *Node) front{
		"HTTP/1.1 by net/http": func(t testing.TB, n *Node) front {
			s := httptest.NewServer(n.Handler())
			t.Cleanup(s.Close)
			return front{s.Client(), s.URL}
		},
		"HTTP/1.1": func(t testing.TB, n *Node) front {
			tr := &http.Transport{}
			t.Cleanup(tr.CloseIdleConnections)
			return front{&http.Client{Transport: tr}, "http://" + serve(t, n, nil)}
		},
		"HTTP/2 without TLS": func(t testing.TB, n *Node) front {
			tr := &http.Transport{Protocols: &http.Protocols{}}
			tr.Protocols.SetUnencryptedHTTP2(true)
			t.Cleanup(tr.CloseIdleConnections)
			return front{&http.Client{Transport: tr}, "http://" + serve(t, n, nil)}
		},
		"HTTP/2 over TLS": func(t testing.TB, n *Node) front {
			s := httptest.NewUnstartedServer(nil)
			s.StartTLS() // for its certificate
			t.Cleanup(s.Close)
			tr := s.Client().Transport.(*http.Transport).Clone()
			tr.ForceAttemptHTTP2 = true
			t.Cleanup(tr.CloseIdleConnections)
			return front{&http.Client{Transport: tr}, "https://" + serve(t, n, &tls.Config{Certificates: s.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}})}
		},
	}
}

// serve serves a node until the end of the test, and gives its address.
func serve(t testing.TB, n *Node, secure *tls.Config) string {
	t.Helper()
	l := listen(t)
	address := l.Addr().String()
	if secure != nil {
		l = tls.NewListener(l, secure)
	}
	runs(t, func(ctx context.Context) error { return n.Serve(ctx, l) })
	return address
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// runs has a server run until the test ends.
func runs(t testing.TB, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// reply is an answer with its body.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// do sends a request, such as "GET /status"; fields are names and values of its
// head.
func (f front) do(t testing.TB, what string, body []byte, fields ...string) reply {
	t.Helper()
	method, path, _ := strings.Cut(what, " ")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, f.url+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(fields); i += 2 {
		r.Header.Set(fields[i], fields[i+1])
	}
	res, err := f.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{res.StatusCode, res.Header, b}
}

// want sends a request, such as "GET /status", and wants a status.
func (f front) want(t testing.TB, status int, what string, body []byte, fields ...string) reply {
	t.Helper()
	r := f.do(t, what, body, fields...)
	if r.status != status {
		t.Fatalf("%.90s: %d %q, want %d", what, r.status, r.body[:min(len(r.body), 100)], status)
	}
	return r
}

// everywhere runs a test over each protocol, with a node of its own.
func everywhere(t *testing.T, o Options, test func(t *testing.T, n *Node, f front)) {
	for name, to := range fronts() {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // the end of HTTP/2 takes a second
			o := o
			if o.Flash != "" {
				o.Flash = t.TempDir()
			}
			n := open(t, o)
			test(t, n, to(t, n))
		})
	}
}

func TestPutAndGet(t *testing.T) {
	everywhere(t, Options{}, func(t *testing.T, n *Node, f front) {
		for i, size := range []int{1, 63, 4096, 64 << 10, 512 << 10, 2 << 20} {
			for _, k := range []int{1, 4} {
				id, b := stripe(uint64(i), code{k, k + 1, k}, size, 0)
				r := f.want(t, 404, "GET "+id.Path(), nil)
				if len(r.body) > 0 || r.header.Get(zone.LeaseHeader) != "" {
					t.Fatalf("a miss says %v %q", r.header, r.body)
				}
				f.want(t, 404, "HEAD "+id.Path(), nil)
				f.want(t, 201, "PUT "+id.Path(), b)
				r = f.want(t, 200, "GET "+id.Path(), nil)
				if !bytes.Equal(r.body, b) || r.header.Get("ETag") != zone.ETag(b) || r.header.Get("Content-Length") != fmt.Sprint(len(b)) {
					t.Fatalf("%s: other bytes, or %v", id, r.header)
				}
				r = f.want(t, 200, "HEAD "+id.Path(), nil)
				if len(r.body) > 0 || r.header.Get("ETag") != zone.ETag(b) || r.header.Get("Content-Length") != fmt.Sprint(len(b)) {
					t.Fatalf("HEAD %s: %v %d", id, r.header, len(r.body))
				}
				f.want(t, 200, "PUT "+id.Path(), b)
			}
		}
		waitFor(t, "the last answers to be counted", func() bool { s := n.Stats(); return s.Gets.FromMemory.Count() == 12 && s.Puts.Times.Count() == 24 })
		if s := n.Stats(); s.Gets.Memory == 0 || s.Puts.Stored != 12 || s.Puts.Had != 12 {
			t.Errorf("%+v", s)
		}
	})
}

func TestPutIfAbsentAndRepair(t *testing.T) {
	everywhere(t, Options{Flash: "yes", FlashSize: 64 << 20}, func(t *testing.T, n *Node, f front) {
		id, first := stripe(1, code{4, 5, 2}, 512<<10, 1)
		_, second := stripe(1, code{4, 5, 2}, 512<<10, 2)
		f.want(t, 412, "PUT "+id.Path(), second, "If-Match", zone.ETag(first))
		f.want(t, 201, "PUT "+id.Path(), first, "If-None-Match", "*")
		f.want(t, 412, "PUT "+id.Path(), second)
		f.want(t, 412, "PUT "+id.Path(), second, "If-Match", zone.ETag(second))
		f.want(t, 201, "PUT "+id.Path(), second, "If-Match", zone.ETag(first))
		if r := f.want(t, 200, "GET "+id.Path(), nil); !bytes.Equal(r.body, second) {
			t.Fatal("the repaired copy is not given")
		}
		f.want(t, 400, "PUT "+id.Path(), second, "If-Match", "first")
		f.want(t, 400, "PUT "+id.Path(), second, "If-None-Match", `"01234567"`)
		if s := n.Stats(); s.Puts.Replaced != 1 || s.Puts.Other != 3 {
			t.Errorf("%+v", s.Puts)
		}
	})
}

func TestPutRefusesWhatIsNoStripe(t *testing.T) {
	everywhere(t, Options{}, func(t *testing.T, n *Node, f front) {
		id, b := usualStripe(1)
		other, _ := usualStripe(2)
		flipped := bytes.Clone(b)
		flipped[1000] ^= 1
		f.want(t, 400, "PUT "+id.Path(), flipped)
		f.want(t, 400, "PUT "+id.Path(), b[:len(b)-1])
		f.want(t, 400, "PUT "+id.Path(), nil)
		f.want(t, 400, "PUT "+other.Path(), b)
		f.want(t, 413, "PUT "+id.Path(), make([]byte, zone.MaxStripe+1))
		for _, path := range []string{"/stripes/", "/stripes/x", strings.ToUpper(id.Path()), id.Path() + "0", id.Path() + "?wait=x", id.Path() + "?wait=5001"} {
			f.want(t, map[bool]int{true: 404, false: 400}[strings.HasPrefix(path, "/STRIPES")], "GET "+path, nil)
		}
		f.want(t, 400, "GET "+id.Path(), nil, zone.LeaseHeader, strings.Repeat("x", zone.MaxToken+1))
		f.want(t, 405, "DELETE "+id.Path(), nil)
		f.want(t, 404, "GET /", nil)
		if n.have(id) || n.Stats().Memory.Used != 0 {
			t.Fatal("something was kept")
		}
	})
}

func TestHave(t *testing.T) {
	everywhere(t, Options{}, func(t *testing.T, _ *Node, f front) {
		var question, want []byte
		for i := range 10 {
			id, b := usualStripe(uint64(i))
			if i%3 == 0 {
				f.want(t, 201, "PUT "+id.Path(), b)
			}
			question = id.Append(question)
			want = append(want, map[bool]byte{true: 1}[i%3 == 0])
		}
		if r := f.want(t, 200, "POST "+zone.HavePath, question); !bytes.Equal(r.body, want) {
			t.Fatalf("%v, want %v", r.body, want)
		}
		if r := f.want(t, 200, "POST "+zone.HavePath, nil); len(r.body) > 0 {
			t.Fatalf("none: %v", r.body)
		}
		f.want(t, 400, "POST "+zone.HavePath, question[1:])
		f.want(t, 400, "POST "+zone.HavePath, make([]byte, zone.IDSize)) // 0 of 0
		f.want(t, 200, "POST "+zone.HavePath, bytes.Repeat(question[:zone.IDSize], zone.MaxHave))
		f.want(t, 413, "POST "+zone.HavePath, bytes.Repeat(question[:zone.IDSize], zone.MaxHave+1))
	})
}

func TestDrain(t *testing.T) {
	everywhere(t, Options{}, func(t *testing.T, n *Node, f front) {
		id, b := usualStripe(1)
		other, ob := usualStripe(2)
		f.want(t, 201, "PUT "+id.Path(), b)
		state := func() (s Stats) {
			if err := json.Unmarshal(f.want(t, 200, "GET /status", nil).body, &s); err != nil {
				t.Fatal(err)
			}
			return s
		}
		if s := state(); s.State != "up" || s.Memory.Stripes != 1 {
			t.Fatalf("%+v", s)
		}
		f.want(t, 204, "POST /drain", nil)
		f.want(t, 503, "PUT "+other.Path(), ob)
		f.want(t, 200, "GET "+id.Path(), nil)
		if r := f.want(t, 404, "GET "+other.Path(), nil, zone.LeaseHeader, "w"); r.header.Get(zone.LeaseHeader) != "" {
			t.Error("a node that takes nothing grants a lease")
		}
		if s := state(); s.State != "draining" || s.Puts.Refused != 1 {
			t.Fatalf("%+v", s)
		}
	})
}

func TestMetrics(t *testing.T) {
	everywhere(t, Options{Flash: "yes", FlashSize: 64 << 20}, func(t *testing.T, n *Node, f front) {
		id, b := usualStripe(1)
		f.want(t, 404, "GET "+id.Path(), nil)
		f.want(t, 201, "PUT "+id.Path(), b)
		f.want(t, 200, "GET "+id.Path(), nil)
		waitFor(t, "the answer to be counted", func() bool { return n.Stats().Gets.FromMemory.Count() == 1 })
		text := string(f.want(t, 200, "GET /metrics", nil).body)
		for _, line := range []string{
			`thaw_zone_gets_total{tier="memory"} 1`, `thaw_zone_gets_total{tier="none"} 1`, `thaw_zone_puts_total{result="stored"} 1`,
			`thaw_zone_get_seconds_count{tier="memory"} 1`, `thaw_zone_get_seconds_bucket{tier="memory",le="+Inf"} 1`,
			`thaw_zone_put_seconds_count 1`, `thaw_zone_accepting 1`, `thaw_zone_sent_bytes_total 131136`, `thaw_zone_stripes{tier="memory"} 1`,
		} {
			if !strings.Contains(text, line+"\n") {
				t.Errorf("no line %s", line)
			}
		}
	})
}

// Whatever happens to it meanwhile, what is given is what was put.
func TestManyAtOnce(t *testing.T) {
	everywhere(t, Options{Memory: 8 << 20, Flash: "yes", FlashSize: 64 << 20}, func(t *testing.T, n *Node, f front) {
		var work sync.WaitGroup
		for w := range 6 {
			work.Go(func() {
				r := rand.New(rand.NewPCG(uint64(w), 1))
				for range 60 {
					id, b := usualStripe(uint64(r.IntN(100)))
					if r.IntN(2) == 0 {
						if got := f.do(t, "PUT "+id.Path(), b); got.status != 201 && got.status != 200 {
							t.Errorf("PUT: %d %s", got.status, got.body)
						}
						continue
					}
					got := f.do(t, "GET "+id.Path(), nil)
					if got.status != 404 && !bytes.Equal(got.body, b) {
						t.Errorf("GET: %d, or other bytes", got.status)
					}
				}
			})
		}
		work.Wait()
		if s := n.Stats(); s.Memory.Used > s.Memory.Limit || s.Busy > 0 {
			t.Errorf("%+v", s)
		}
	})
}
