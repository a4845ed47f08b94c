package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
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

// request gives a signed invoke of a function. The signature holds for five
// minutes, so that what is measured is not the signing.
func (r *region) request(b testing.TB, function string, payload []byte) func() *http.Request {
	b.Helper()
	url := r.env["AWS_ENDPOINT_URL"] + "/2015-03-31/functions/" + function + "/invocations"
	first, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(payload))
	try(b, err)
	sum := sha256.Sum256(payload)
	keys := aws.Credentials{AccessKeyID: r.env["AWS_ACCESS_KEY_ID"], SecretAccessKey: r.env["AWS_SECRET_ACCESS_KEY"]}
	try(b, v4.NewSigner().SignHTTP(context.Background(), keys, first, hex.EncodeToString(sum[:]), "lambda", r.env["AWS_REGION"], time.Now()))
	return func() *http.Request {
		q := first.Clone(context.Background())
		q.Body = io.NopCloser(bytes.NewReader(payload))
		return q
	}
}

// ask sends a request and gives how long the whole answer took.
func ask(c *http.Client, q *http.Request, want []byte) (time.Duration, error) {
	began := time.Now()
	res, err := c.Do(q)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err == nil && (res.StatusCode != http.StatusOK || !bytes.Equal(got, want)) {
		err = fmt.Errorf("%s: %.200q", res.Status, got)
	}
	return time.Since(began), err
}

// BenchmarkWarm invokes a function that is warm: one client, an open loop, and
// as much as goes, the last in turns with a bare HTTP server that echoes. All
// roles are processes, signatures are checked, REPORT lines written, instances
// frozen when they idle.
func BenchmarkWarm(b *testing.B) {
	asRoot(b)
	r := newRegion(b)
	payload := []byte(`{"text":"` + strings.Repeat("x", 1000) + `"}`)
	for _, memory := range []string{"1769", "128"} {
		name := "warm" + memory
		timed(b, r.thaw, r.args("deploy", name, "oci:"+corpus(b, "fn-go"), "--memory", memory)...)
		q := r.request(b, name, payload)
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1024, DisableCompression: true}}
		for range 20 {
			_, err := ask(client, q(), payload)
			try(b, err)
		}
		var alone []time.Duration
		for range warmAlone {
			took, err := ask(client, q(), payload)
			try(b, err)
			alone = append(alone, took)
		}
		b.Logf("claim: %s MB, one client: p50 %v, p99 %v", memory, quantile(alone, .5), quantile(alone, .99))
		open := steadily(b, client, pace{warmRate, warmTime}, q, payload)
		b.Logf("claim: %s MB, open loop of %d/s: p50 %v, p99 %v of %d", memory, warmRate, quantile(open, .5), quantile(open, .99), len(open))
		if memory == "1769" {
			bare := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				body, _ := io.ReadAll(q.Body)
				_, _ = w.Write(body)
			}))
			defer bare.Close()
			echo := func() *http.Request {
				q, _ := http.NewRequest(http.MethodPost, bare.URL, bytes.NewReader(payload)) // the URL is right
				return q
			}
			var ours, theirs []float64
			var ratio Ratios
			for range warmRounds {
				ours = append(ours, saturate(b, client, q, payload))
				theirs = append(theirs, saturate(b, client, echo, payload))
				ratio = append(ratio, ours[len(ours)-1]/theirs[len(theirs)-1])
			}
			b.Logf("claim: %d clients: %.0f invokes/s, bare echo %.0f/s, ours ÷ bare %s", warmClients, slices.Max(ours), slices.Max(theirs), ratio)
		}
	}
}

// pace is how many requests a second are sent, and for how long.
type pace struct {
	rate int
	time time.Duration
}

// steadily sends requests at a rate, however long answers take, and gives the
// times from when each was due: an open loop.
func steadily(b testing.TB, c *http.Client, p pace, q func() *http.Request, want []byte) (all []time.Duration) {
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
			if _, err := ask(c, q(), want); err != nil {
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
func saturate(b testing.TB, c *http.Client, q func() *http.Request, want []byte) float64 {
	var work sync.WaitGroup
	var done atomic.Int64
	began := time.Now()
	for range warmClients {
		work.Go(func() {
			for time.Since(began) < 2*time.Second {
				if _, err := ask(c, q(), want); err != nil {
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
