package worker

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"thaw/invokewire"
)

// BenchmarkWarm is an invoke of an idle instance over kept-alive HTTP, 1 KiB each
// way, one after the other: p50 and p99.
func BenchmarkWarm(b *testing.B) {
	r := newRig(b, nil)
	r.start("i1", "", spec(func(s *invokewire.Spec) { s.Memory = 1769 }))
	event := append(append([]byte{'"'}, bytes.Repeat([]byte{'x'}, 1022)...), '"')
	var took []time.Duration
	for b.Loop() {
		req, err := http.NewRequest("POST", r.url+"/instances/i1/invoke", bytes.NewReader(event))
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set(invokewire.HeaderToken, "token")
		req.Header.Set(invokewire.HeaderRequestID, "8f5e0a4e-0000-4000-8000-000000000000")
		began := time.Now()
		resp := r.send(req)
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if n != int64(len(event)) || err != nil {
			b.Fatal(resp.Status, n, err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkPartialStart is a start with slot and root prepared, until the function
// has answered.
func BenchmarkPartialStart(b *testing.B) {
	r := newRig(b, nil)
	for b.Loop() {
		r.start("i", invokewire.StartPartial, spec(func(s *invokewire.Spec) { s.Memory = 1769 }))
		r.invoke("i", "r1", "1")
		b.StopTimer()
		r.do("DELETE", "/instances/i", nil).Body.Close()
		b.StartTimer()
	}
	sums := stages{}
	all := r.w.history.list()
	for _, s := range all {
		for stage, took := range s.Stages {
			sums[stage] += took
		}
	}
	for stage, sum := range sums {
		b.ReportMetric(float64(sum/int64(len(all))), stage+"-µs")
	}
}

// BenchmarkStorm is 100 cold starts at once, of functions that then all live: wall
// time of each, and how long inits took.
func BenchmarkStorm(b *testing.B) {
	const size = 100
	r := newRig(b, nil)
	for b.Loop() {
		var all sync.WaitGroup
		for n := range size {
			id := "i" + strconv.Itoa(n)
			r.start(id, "", spec(func(s *invokewire.Spec) { s.Memory = 128 }))
			all.Go(func() {
				if got := r.invoke(id, "r1", "1"); got.body != "1" {
					b.Errorf("%s: %+v", id, got)
				}
			})
		}
		all.Wait()
		b.StopTimer()
		for n := range size {
			r.do("DELETE", "/instances/i"+strconv.Itoa(n), nil).Body.Close()
		}
		b.StartTimer()
	}
	var inits []int64
	for _, s := range r.w.history.list() {
		inits = append(inits, s.Stages["init"])
	}
	slices.Sort(inits)
	b.ReportMetric(float64(inits[len(inits)/2]), "init-p50-µs")
	b.ReportMetric(float64(inits[len(inits)*95/100]), "init-p95-µs")
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N*size)*1e6, "start-µs")
}
