package cache

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestFlightFollowers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flights[string, int]
		begun := 0
		slow := func(ctx context.Context, u under[int]) (int, error) {
			begun++
			u.tell(errors.New("slow"))
			return 7, sleep(ctx, time.Minute)
		}
		type result struct {
			value int
			err   error
			after time.Duration
		}
		start, results := time.Now(), make(chan result, 3)
		for _, patience := range []time.Duration{time.Second, 2 * time.Second, time.Hour} {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				v, err := g.do(ctx, "a", slow)
				results <- result{v, err, time.Since(start)}
			}()
			synctest.Wait() // the first leads, and leaves first
		}
		for _, after := range []time.Duration{time.Second, 2 * time.Second} {
			if r := <-results; !errors.Is(r.err, context.DeadlineExceeded) || r.after != after || !strings.Contains(r.err.Error(), "slow") {
				t.Errorf("%+v, want the end of its context after %v, and the cause", r, after)
			}
		}
		if r := <-results; r.value != 7 || r.err != nil || r.after != time.Minute || begun != 1 {
			t.Errorf("%+v after %d works, want 7", r, begun)
		}
		g.close()
	})
}

// TestFlightAbandoned: work that nobody waits for ends, and is not joined.
func TestFlightAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g flights[string, int]
		ended, goOn := false, make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		_, err := g.do(ctx, "a", func(ctx context.Context, _ under[int]) (int, error) {
			cancel() // not before the work has begun: nothing would be waited for
			<-ctx.Done()
			ended = true
			<-goOn
			return 1, nil
		})
		if synctest.Wait(); !errors.Is(err, context.Canceled) || !ended {
			t.Errorf("%v; the work saw its end: %v", err, ended)
		}
		if v, err := g.do(t.Context(), "a", func(context.Context, under[int]) (int, error) { return 2, nil }); v != 2 || err != nil {
			t.Errorf("joined work that was ending: %d, %v", v, err)
		}
		close(goOn)
		g.close()
		if _, err := g.do(t.Context(), "a", nil); !errors.Is(err, errClosed) {
			t.Errorf("after close: %v", err)
		}
	})
}

func TestFlightPanics(t *testing.T) {
	var g flights[string, int]
	defer g.close()
	begun, goOn := make(chan struct{}), make(chan struct{})
	errs := make(chan error)
	for i := range 2 {
		go func() {
			if i > 0 {
				<-begun
			}
			_, err := g.do(context.Background(), "a", func(context.Context, under[int]) (int, error) {
				close(begun)
				<-goOn
				panic("at the disco")
			})
			errs <- err
		}()
	}
	<-begun
	eventually(t, func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.calls["a"].waiters == 2
	})
	close(goOn)
	for range 2 {
		if err := <-errs; !errors.Is(err, errInternal) || !strings.Contains(err.Error(), "disco") {
			t.Errorf("%v, want the panic", err)
		}
	}
}

// eventually waits for what other goroutines do.
func eventually(t testing.TB, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(testPatience); time.Now().Before(end); <-tick.C {
		if done() {
			return
		}
	}
	t.Fatal("waited in vain")
}

// TestFlightGives: what is given early has all who join until the work ends,
// each of them is told of, and so is the end.
func TestFlightGives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refs, ends int
		g := flights[string, int]{share: func(_ int, n int) {
			if refs += n; n < 0 {
				ends++
			}
		}}
		goOn := make(chan struct{})
		work := func(_ context.Context, u under[int]) (int, error) {
			u.give(7)
			u.give(8) // too late
			<-goOn
			return 9, errors.New("also too late")
		}
		for i := range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			v, err := g.do(ctx, "a", work)
			cancel()
			if v != 7 || err != nil || refs != i+1 {
				t.Errorf("%d, %v; %d have it, want %d", v, err, refs, i+1)
			}
		}
		whole := make(chan int)
		go func() {
			v, err := g.whole(t.Context(), "a", work)
			if err != nil {
				t.Error(err)
			}
			whole <- v
		}()
		synctest.Wait()
		if g.count() != 1 || ends != 0 {
			t.Errorf("%d under way, %d ended", g.count(), ends)
		}
		close(goOn)
		if v := <-whole; v != 7 || refs != 3 || ends != 1 || g.count() != 0 {
			t.Errorf("%d; %d have it, %d ended, %d under way", v, refs, ends, g.count())
		}
		g.close()
	})
}
