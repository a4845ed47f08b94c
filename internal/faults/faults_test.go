package faults

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

const text = "0123456789abcdef"

func TestReader(t *testing.T) {
	boom := errors.New("boom")
	cases := []struct {
		name   string
		faults []Fault
		want   string
		err    error
	}{
		{"none", nil, text, nil},
		{"truncate", []Fault{{Kind: Truncate, At: 5}}, "01234", nil},
		{"truncate at 0", []Fault{{Kind: Truncate}}, "", nil},
		{"truncate past the end", []Fault{{Kind: Truncate, At: 99}}, text, nil},
		{"flip", []Fault{{Kind: Flip, At: 10}}, "0123456789`bcdef", nil},
		{"flip past the end", []Fault{{Kind: Flip, At: 16}}, text, nil},
		{"fail", []Fault{{Kind: Fail, At: 3, Err: boom}}, "012", boom},
		{"fail by default", []Fault{{Kind: Fail, At: 3}}, "012", ErrInjected},
		{"flip, then truncate", []Fault{{Kind: Truncate, At: 2}, {Kind: Flip, At: 0}}, "11", nil},
	}
	for _, c := range cases {
		for chunking, wrap := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "by the byte": iotest.OneByteReader,
		} {
			t.Run(c.name+" "+chunking, func(t *testing.T) {
				got, err := io.ReadAll(Reader(wrap(bytes.NewReader([]byte(text))), c.faults...))
				if string(got) != c.want || !errors.Is(err, c.err) {
					t.Errorf("got %q, %v; want %q, %v", got, err, c.want, c.err)
				}
			})
		}
	}
}

func TestCalls(t *testing.T) {
	c := Calls{From: 2, To: 3}
	for i, want := range []error{nil, ErrInjected, ErrInjected, nil} {
		if err := c.Next(); !errors.Is(err, want) {
			t.Errorf("call %d: %v, want %v", i+1, err, want)
		}
	}
	if c.Count() != 4 {
		t.Errorf("counted %d calls", c.Count())
	}
	var zero Calls
	if err := zero.Next(); err != nil {
		t.Errorf("the zero value failed: %v", err)
	}
}

func TestRandomIsSeededAndLimited(t *testing.T) {
	faults := []Fault{{Kind: Reset}, {Kind: Status, Status: 500}}
	draw := func(seed uint64) (got []Kind) {
		rule := Random(seed, 0.5, 8, faults...)
		for range 64 {
			f, _ := rule(0, nil)
			got = append(got, f.Kind)
		}
		return got
	}
	count := func(ks []Kind) (n int) {
		for _, k := range ks {
			if k != 0 {
				n++
			}
		}
		return n
	}
	a, b, other := draw(7), draw(7), draw(8)
	if string(kinds(a)) != string(kinds(b)) || string(kinds(a)) == string(kinds(other)) {
		t.Errorf("seeds 7, 7, 8 drew %v, %v, %v", a, b, other)
	}
	if count(a) != 8 {
		t.Errorf("%d faults, limit 8", count(a))
	}
}

func kinds(ks []Kind) (b []byte) {
	for _, k := range ks {
		b = append(b, byte(k))
	}
	return b
}

// exchange is the outcome of one GET.
type exchange struct {
	status int
	body   string
	err    error
}

func get(ctx context.Context, client *http.Client, url string) (e exchange) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return exchange{err: err}
	}
	res, err := client.Do(req)
	if err != nil {
		return exchange{err: err}
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	return exchange{res.StatusCode, string(data), err}
}

// TestHTTP runs every fault through the transport and through the handler:
// both must look alike to a client.
func TestHTTP(t *testing.T) {
	cases := []struct {
		name   string
		fault  Fault
		want   exchange
		served int64
	}{
		{"status", Fault{Kind: Status, Status: 503}, exchange{503, "", nil}, 0},
		{"reset", Fault{Kind: Reset}, exchange{err: syscall.ECONNRESET}, 0},
		{"lose", Fault{Kind: Lose}, exchange{err: syscall.ECONNRESET}, 1},
		{"flip", Fault{Kind: Flip, At: 1}, exchange{200, "0023456789abcdef", nil}, 1},
		{"truncate", Fault{Kind: Truncate, At: 4}, exchange{200, "0123", io.ErrUnexpectedEOF}, 1},
		{"delay", Fault{Kind: Delay, Delay: time.Microsecond}, exchange{200, text, nil}, 1},
	}
	for _, c := range cases {
		for _, side := range []string{"transport", "handler"} {
			t.Run(c.name+" "+side, func(t *testing.T) {
				var served Calls
				handler := http.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					_ = served.Next()
					w.Header().Set("Content-Length", "16")
					_, _ = io.WriteString(w, text)
				}))
				rule := OnCalls(c.fault, 1)
				client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
				if side == "handler" {
					handler = Handler(handler, rule)
				} else {
					client.Transport = Transport(client.Transport, rule)
				}
				server := httptest.NewServer(handler)
				defer server.Close()
				got := get(t.Context(), client, server.URL)
				if got.status != c.want.status || got.body != c.want.body || !errors.Is(got.err, c.want.err) {
					t.Errorf("got %+v, want %+v", got, c.want)
				}
				if served.Count() != c.served {
					t.Errorf("%d requests were served, want %d", served.Count(), c.served)
				}
				if got := get(t.Context(), client, server.URL); got != (exchange{200, text, nil}) {
					t.Errorf("the second call got %+v", got)
				}
			})
		}
	}
}

func TestFailIsTheTransportsError(t *testing.T) {
	boom := errors.New("boom")
	client := &http.Client{Transport: Transport(http.DefaultTransport, OnCalls(Fault{Kind: Fail, Err: boom}, 1))}
	if got := get(t.Context(), client, "http://127.0.0.1:1/"); !errors.Is(got.err, boom) {
		t.Errorf("got %v", got.err)
	}
}

func TestDelayEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		client := &http.Client{Transport: Transport(http.DefaultTransport, OnCalls(Fault{Kind: Delay, Delay: time.Hour}, 1))}
		start := time.Now()
		if got := get(ctx, client, "http://127.0.0.1:1/"); !errors.Is(got.err, context.DeadlineExceeded) {
			t.Errorf("got %v", got.err)
		}
		if took := time.Since(start); took != time.Minute {
			t.Errorf("waited %v of fake time", took)
		}
	})
}

func TestOnMethodCountsUnderConcurrency(t *testing.T) {
	rule := OnMethod(Fault{Kind: Reset}, http.MethodPut, 5)
	var hits Calls
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for _, method := range []string{http.MethodPut, http.MethodGet} {
				if _, hit := rule(0, &http.Request{Method: method}); hit {
					_ = hits.Next()
				}
			}
		})
	}
	wg.Wait()
	if hits.Count() != 5 {
		t.Errorf("%d faults, want 5", hits.Count())
	}
}
