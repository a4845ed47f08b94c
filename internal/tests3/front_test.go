package tests3

import (
	"io"
	"net/http"
	"reflect"
	"sync"
	"testing"

	"thaw/internal/faults"
)

// TestFront counts what is asked, at once and in all, and obeys its rule.
func TestFront(t *testing.T) {
	s := Start(t)
	gate, entered := make(chan struct{}), make(chan struct{})
	f := s.Front(t, func(int64, *http.Request) (faults.Fault, bool) {
		entered <- struct{}{}
		<-gate
		return faults.Fault{Kind: faults.Status, Status: http.StatusTeapot}, true
	}, "/chunks/")
	ask := func(path string) int {
		res, err := http.Get(f.URL + path)
		if err != nil {
			t.Error(err)
			return 0
		}
		defer res.Body.Close()
		_, _ = io.Copy(io.Discard, res.Body)
		return res.StatusCode
	}
	var wg sync.WaitGroup
	for _, path := range []string{"/b/chunks/a", "/b/chunks/a", "/b/chunks/b", "/b/names/a"} {
		wg.Go(func() {
			if got := ask(path); got != http.StatusTeapot {
				t.Errorf("%s: %d", path, got)
			}
		})
		<-entered
	}
	close(gate)
	wg.Wait()
	want := Seen{Requests: 4, MostAtOnce: 4, Gets: 3, MostGetsAtOnce: 3, Asked: []string{"/b/chunks/a", "/b/chunks/b"}}
	if got := f.Seen(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	f.Forget()
	f.Set(nil)
	if got := ask("/b/chunks/a"); got < 400 || got == http.StatusTeapot || got >= 500 {
		t.Errorf("the server said %d to a request that is not signed", got)
	}
	if got := f.Seen(); got.Requests != 1 || got.Gets != 1 || len(got.Asked) != 1 {
		t.Errorf("after Forget: %+v", got)
	}
}
