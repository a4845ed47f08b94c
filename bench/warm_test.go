package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"thaw/quiet"
)

const (
	// warmAlone is how many invokes one client makes, one after another.
	warmAlone = 3000
	// warmRate is the open loop's, in invokes a second, for warmTime.
	warmRate = 1000
	warmTime = 5 * time.Second
	// warmClients saturate it.
	warmClients = 8
	// warmRounds are taken in turns with the bare server.
	warmRounds = 3
)

// region is a platform of the program, with what clients need.
type region struct {
	*place
	env map[string]string
}

// newRegion brings a platform up, and down at the end.
func newRegion(b testing.TB, flags ...string) *region {
	b.Helper()
	r := &region{place: newPlace(b)}
	r.platform(b, flags...)
	for len(r.env) == 0 { // it says its endpoint as soon as the record is there
		out, err := exec.Command(r.thaw, r.args("env", "--json")...).Output()
		try(b, err)
		try(b, json.Unmarshal(out, &r.env))
	}
	return r
}

// caller sends the same request again and again, over kept-alive connections. It
// costs the machine as little as a client can, so that what is measured is who
// answers.
type caller struct {
	address   string
	raw, want []byte
	idle      chan *line
}

// line is a connection of a caller's.
type line struct {
	net.Conn
	in  *bufio.Reader
	got []byte
}

func newCaller(b testing.TB, q *http.Request, want []byte) *caller {
	b.Helper()
	c := &caller{address: q.URL.Host, want: want, idle: make(chan *line, 1024)}
	var raw bytes.Buffer
	try(b, q.Write(&raw))
	c.raw = raw.Bytes()
	b.Cleanup(func() {
		for len(c.idle) > 0 {
			_ = (<-c.idle).Close()
		}
	})
	return c
}

// caller invokes a function. The request is signed once: a signature holds for
// five minutes, here as at Lambda.
func (r *region) caller(b testing.TB, function string, payload []byte) *caller {
	b.Helper()
	url := r.env["AWS_ENDPOINT_URL"] + "/2015-03-31/functions/" + function + "/invocations"
	q, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(payload))
	try(b, err)
	sum := sha256.Sum256(payload)
	keys := aws.Credentials{AccessKeyID: r.env["AWS_ACCESS_KEY_ID"], SecretAccessKey: r.env["AWS_SECRET_ACCESS_KEY"]}
	try(b, v4.NewSigner().SignHTTP(context.Background(), keys, q, hex.EncodeToString(sum[:]), "lambda", r.env["AWS_REGION"], time.Now()))
	return newCaller(b, q, payload)
}

// ask sends the request and gives how long the whole answer took.
func (c *caller) ask() (time.Duration, error) {
	began := time.Now()
	l, err := c.line()
	if err != nil {
		return 0, err
	}
	err = l.ask(c)
	if err != nil {
		_ = l.Close()
		return 0, err
	}
	took := time.Since(began)
	select {
	case c.idle <- l:
	default:
		_ = l.Close()
	}
	return took, nil
}

// line gives a connection that is idle, or a new one.
func (c *caller) line() (*line, error) {
	select {
	case l := <-c.idle:
		return l, nil
	default:
	}
	conn, err := new(quiet.Dialer).DialContext(context.Background(), "tcp", c.address)
	if err != nil {
		return nil, err
	}
	return &line{Conn: conn, in: bufio.NewReaderSize(conn, 8<<10), got: make([]byte, len(c.want))}, nil
}

func (l *line) ask(c *caller) error {
	if _, err := l.Write(c.raw); err != nil {
		return err
	}
	res, err := http.ReadResponse(l.in, nil)
	if err != nil {
		return err
	}
	n, err := io.ReadFull(res.Body, l.got)
	if res.StatusCode != http.StatusOK || err != nil || !bytes.Equal(l.got, c.want) {
		return fmt.Errorf("%s, %v: %.200q", res.Status, err, l.got[:n])
	}
	_, err = io.Copy(io.Discard, res.Body) // the end
	return err
}

// BenchmarkWarm invokes a function that is warm: one client, an open loop, and
// as much as goes, the last in turns with a bare HTTP server that echoes, and with
// the function held to one thread of Go, as its variables may have it. All
// roles are processes, signatures are checked, REPORT lines written, instances
// frozen when they idle.
func BenchmarkWarm(b *testing.B) {
	asRoot(b)
	r := newRegion(b)
	payload := []byte(`{"text":"` + strings.Repeat("x", 1000) + `"}`)
	for _, memory := range []string{"1769", "128"} {
		name := "warm" + memory
		timed(b, r.thaw, r.args("deploy", name, "oci:"+corpus(b, "fn-go"), "--memory", memory, "--timeout", "30")...)
		c := r.caller(b, name, payload)
		for range 20 {
			_, err := c.ask()
			try(b, err)
		}
		var alone []time.Duration
		for range warmAlone {
			took, err := c.ask()
			try(b, err)
			alone = append(alone, took)
		}
		b.Logf("claim: %s MB, one client: p50 %v, p99 %v", memory, quantile(alone, .5), quantile(alone, .99))
		r.warm(b, name)
		saturate(b, c) // or the frontend takes the function for a slow one
		open := steadily(b, c, pace{warmRate, warmTime})
		if n := r.served(b, name); n < warmClients {
			b.Errorf("%d instances of %s have served, want %d at least", n, name, warmClients)
		}
		b.Logf("claim: %s MB, open loop of %d/s: p50 %v, p99 %v of %d", memory, warmRate, quantile(open, .5), quantile(open, .99), len(open))
		if memory == "1769" {
			bare := httptest.NewServer(http.HandlerFunc(echo))
			defer bare.Close()
			q, err := http.NewRequest(http.MethodPost, bare.URL, bytes.NewReader(payload))
			try(b, err)
			plain := newCaller(b, q, payload)
			timed(b, r.thaw, r.args("deploy", "one", "oci:"+corpus(b, "fn-go"), "--memory", memory, "--timeout", "30", "-e", "GOMAXPROCS=1")...)
			one := r.caller(b, "one", payload)
			r.warm(b, "one")
			var ours, theirs, ones []float64
			var ratio Ratios
			for range warmRounds {
				ours = append(ours, saturate(b, c))
				ones = append(ones, saturate(b, one))
				theirs = append(theirs, saturate(b, plain))
				ratio = append(ratio, ours[len(ours)-1]/theirs[len(theirs)-1])
			}
			b.Logf("claim: %d clients: %.0f to %.0f invokes/s, bare echo %.0f/s, ours ÷ bare %s", warmClients, slices.Min(ours), slices.Max(ours), slices.Max(theirs), ratio)
			b.Logf("claim: %d clients of the function with GOMAXPROCS=1: %.0f to %.0f invokes/s", warmClients, slices.Min(ones), slices.Max(ones))
		}
	}
}

// warm has as many instances of a function as clients saturate it: each of so many
// invokes holds one for longer than a start takes.
func (r *region) warm(b testing.TB, function string) {
	b.Helper()
	hold := r.caller(b, function, []byte(`{"do":{"sleep_ms":5000}}`))
	var work sync.WaitGroup
	for range warmClients {
		work.Go(func() { _, _ = hold.ask() }) // whatever it answers: served counts them
	}
	work.Wait()
}

// echo is the least that a server of Go's does with a request.
func echo(w http.ResponseWriter, q *http.Request) {
	body, _ := io.ReadAll(q.Body)
	_, _ = w.Write(body)
}

// served counts the instances of a function that have answered.
func (r *region) served(b testing.TB, function string) (n int) {
	b.Helper()
	out, err := exec.Command(r.thaw, r.args("fleet", "--json")...).Output()
	try(b, err)
	for line := range bytes.Lines(out) {
		var worker struct {
			Instances []struct {
				Function string
				Invokes  int
			}
		}
		try(b, json.Unmarshal(line, &worker))
		for _, i := range worker.Instances {
			if i.Function == function && i.Invokes > 0 {
				n++
			}
		}
	}
	return n
}

// pace is how many requests a second are sent, and for how long.
type pace struct {
	rate int
	time time.Duration
}

// steadily sends requests at a rate, however long answers take, and gives the
// times from when each was due: an open loop.
func steadily(b testing.TB, c *caller, p pace) (all []time.Duration) {
	b.Helper()
	var mu sync.Mutex
	var work sync.WaitGroup
	var failed atomic.Int64
	var first atomic.Value
	began := time.Now()
	for i := range int(p.time.Seconds() * float64(p.rate)) {
		due := began.Add(time.Duration(i) * time.Second / time.Duration(p.rate))
		<-time.After(time.Until(due))
		work.Go(func() {
			if _, err := c.ask(); err != nil {
				failed.Add(1)
				first.CompareAndSwap(nil, err.Error())
				return
			}
			took := time.Since(due)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took)
		})
	}
	work.Wait()
	if failed.Load() > 0 {
		b.Errorf("%d invokes failed, one with: %v", failed.Load(), first.Load())
	}
	return all
}

// saturate gives how many requests a second are answered.
func saturate(b testing.TB, c *caller) float64 {
	var work sync.WaitGroup
	var done atomic.Int64
	began := time.Now()
	for range warmClients {
		work.Go(func() {
			for time.Since(began) < 2*time.Second {
				if _, err := c.ask(); err != nil {
					b.Error(err)
					return
				}
				done.Add(1)
			}
		})
	}
	work.Wait()
	return float64(done.Load()) / time.Since(began).Seconds()
}

// quantile gives the value that a part of all is at most.
func quantile(all []time.Duration, q float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(all))
	return s[min(len(s)-1, int(q*float64(len(s))))].Round(time.Microsecond)
}
