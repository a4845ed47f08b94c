package frontend

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
)

// An account that wants many turns keeps no other waiting, and all together have
// no more than there are.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var mu sync.Mutex
		had, ended := map[string][]func(){}, 0
		want := func(account string, n int) {
			t.Helper()
			synctest.Wait()
			if len(had[account]) != n {
				t.Fatalf("%s has %d turns, want %d", account, len(had[account]), n)
			}
		}
		ask := func(account string) {
			go func() {
				done, err := turns.take(ctx, account)
				mu.Lock()
				defer mu.Unlock()
				if errors.Is(err, context.Canceled) {
					ended++
					return
				}
				had[account] = append(had[account], done)
			}()
			synctest.Wait()
		}
		for range 100 {
			ask("busy")
		}
		want("busy", logReadsEach)
		for n := range logReads - logReadsEach {
			ask(fmt.Sprint(n))
			want(fmt.Sprint(n), 1)
		}
		ask("late")
		want("late", 0)
		had["0"][0]()
		want("late", 1)
		had["busy"][0]()
		want("busy", logReadsEach+1)
		cancel()
		synctest.Wait()
		if ended != 100-logReadsEach-1 {
			t.Errorf("%d wait no more", ended)
		}
		had["0"] = nil
		had["busy"] = had["busy"][1:]
		for _, all := range had {
			for _, done := range all {
				done()
			}
		}
		if len(turns.all) != 0 || len(turns.of) != 0 {
			t.Errorf("%d turns are had, and %d accounts known, once all is over", len(turns.all), len(turns.of))
		}
	})
}
