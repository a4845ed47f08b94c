package zone

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"testing"

	"thaw/chunk"
	"thaw/chunk/chunktest"
)

// surveyed is what a survey tells, by node: of each chunk whether it has its stripe.
func (z *testZone) surveyed(names []chunk.Name) map[string]map[chunk.Name]bool {
	z.t.Helper()
	all := map[string]map[chunk.Name]bool{}
	err := z.Survey(z.t.Context(), names, func(addr string, held, lacking []chunk.Name) {
		of := map[chunk.Name]bool{}
		for _, name := range held {
			of[name] = true
		}
		for _, name := range lacking {
			if of[name] {
				z.t.Error("held, and lacking")
			}
			of[name] = false
		}
		all[addr] = of
	})
	if err != nil {
		z.t.Fatal(err)
	}
	return all
}

// TestSurvey tells what nodes hold of what belongs there, and nothing of those that
// do not answer rightly.
func TestSurvey(t *testing.T) {
	noLeaks(t)
	z := newZone(t, 6, Options{K: 4, N: 5})
	names := make([]chunk.Name, 3*MaxHave/2) // of a node more than fits into a question
	put := map[chunk.Name]bool{}
	for i := range names {
		if i%1024 == 0 {
			names[i] = z.fill(byte(i/1024), 1000).Name
			put[names[i]] = true
			continue
		}
		names[i] = chunk.Name{byte(i), byte(i >> 8), 7}
	}
	all := z.surveyed(names)
	if len(all) != 6 {
		t.Errorf("%d nodes answered", len(all))
	}
	for addr, of := range all {
		for _, name := range names {
			belongs := slices.ContainsFunc(z.at(name), func(n *testNode) bool { return n.addr() == addr })
			if held, told := of[name]; told != belongs || held != (belongs && put[name]) {
				t.Fatalf("%s of %s: told %v, held %v; belongs there %v, put %v", addr, name, told, held, belongs, put[name])
			}
		}
	}
	list := sorted(z.nodes)
	for i, f := range []http.HandlerFunc{
		func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte{1}) },
		func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		z.nodes[list[i]].behave(f)
	}
	z.nodes[list[3]].Close()
	if all = z.surveyed(names); len(all) != 2 {
		t.Errorf("%d nodes are told of, want the two that answer: %v", len(all), sorted(all))
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	told := func(string, []chunk.Name, []chunk.Name) { t.Error("told of one") }
	if err := z.Survey(ended, names, told); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
	if err := z.Close(); err != nil {
		t.Error(err)
	}
	if err := z.Survey(t.Context(), []chunk.Name{chunktest.Sample(1, 10).Name}, told); !errors.Is(err, errClosed) {
		t.Errorf("closed: %v", err)
	}
}
