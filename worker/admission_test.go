package worker

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"thaw/invokewire"
)

// startOf is a start of an account's function, as "account/function/number".
func startOf(id string) *instance {
	part := strings.Split(id, "/")
	return &instance{id: id, spec: &invokewire.Spec{Account: part[0], Function: part[1]}}
}

// Few starts run at once, the others wait in their order, and of those only so many.
func TestAdmission(t *testing.T) {
	var ran []string
	a := newAdmission(2, 3, func(i *instance) { ran = append(ran, i.id) })
	all := map[string]*instance{}
	for _, id := range []string{"a/f/1", "a/f/2", "a/f/3", "a/f/4", "a/f/5"} {
		all[id] = startOf(id)
		if err := a.add(all[id]); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.add(startOf("a/f/6")); !errors.Is(err, errFull) {
		t.Errorf("one too many: %v", err)
	}
	if running, queued := a.counts(); running != 2 || queued != 3 {
		t.Errorf("%d run, %d wait", running, queued)
	}
	if !a.remove(all["a/f/4"]) || a.remove(all["a/f/4"]) || a.remove(all["a/f/1"]) {
		t.Error("only what waits can be taken back, once")
	}
	for _, id := range []string{"a/f/1", "a/f/2", "a/f/3", "a/f/5"} {
		a.done(all[id])
	}
	if running, queued := a.counts(); running != 0 || queued != 0 || !slices.Equal(ran, []string{"a/f/1", "a/f/2", "a/f/3", "a/f/5"}) {
		t.Errorf("%d run, %d wait, %q ran", running, queued, ran)
	}
}

// Whose starts fill the queue, or take long, keeps no other account waiting, and
// no other function longer than it must.
func TestAdmissionIsFair(t *testing.T) {
	var ran []string
	all := map[string]*instance{}
	a := newAdmission(2, 100, func(i *instance) { ran = append(ran, i.id) })
	add := func(ids ...string) {
		for _, id := range ids {
			all[id] = startOf(id)
			if err := a.add(all[id]); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := func(ids ...string) {
		t.Helper()
		if !slices.Equal(ran, ids) {
			t.Errorf("%q ran, want %q", ran, ids)
		}
		ran = nil
	}
	add("a/f/1", "a/f/2", "a/f/3", "a/f/4", "a/g/1", "b/f/1", "b/f/2")
	want("a/f/1", "a/f/2")
	a.done(all["a/f/1"])
	want("b/f/1") // the other account's
	a.done(all["b/f/1"])
	want("b/f/2")
	a.done(all["b/f/2"])
	want("a/g/1") // the other function's
	a.keeps(all["a/f/2"], turnAccount)
	want() // of account a two still use the processor
	add("c/f/1")
	want("c/f/1") // which keeps no other from its turn
	a.keeps(all["a/g/1"], turnNone)
	want("a/f/3")
	a.keeps(all["a/f/2"], turnNone)
	want()
	a.done(all["c/f/1"])
	want("a/f/4")
	for _, id := range []string{"a/f/2", "a/g/1", "a/f/3", "a/f/4"} {
		a.done(all[id])
	}
	a.keeps(all["a/f/2"], turnAll) // it is over
	if running, queued := a.counts(); running != 0 || queued != 0 {
		t.Errorf("%d run, %d wait", running, queued)
	}
}

// Whatever comes: never more than so many compute, of all and of an account, and
// none waits that may run.
func TestAdmissionModel(t *testing.T) {
	const most, limit = 3, 12
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 0))
		running, waiting := map[*instance]turn{}, []*instance{}
		a := newAdmission(most, limit, func(i *instance) {
			running[i] = turnAll
			waiting = slices.DeleteFunc(waiting, func(j *instance) bool { return i == j })
		})
		pick := func() *instance {
			for i := range running {
				return i
			}
			return nil
		}
		for step := range 300 {
			switch random.IntN(4) {
			case 0, 1:
				i := startOf(fmt.Sprintf("%d/%d/%d", random.IntN(3), random.IntN(2), step))
				waiting = append(waiting, i)
				if err := a.add(i); err != nil {
					waiting = waiting[:len(waiting)-1]
					if len(waiting) < limit {
						t.Fatalf("seed %d, step %d: %d wait and one is refused", seed, step, len(waiting))
					}
				}
			case 2:
				if i := pick(); i != nil {
					delete(running, i)
					a.done(i)
				}
			case 3:
				if i := pick(); i != nil && running[i] > turnNone {
					running[i]--
					a.keeps(i, running[i])
				}
			}
			all, of := 0, map[string]int{}
			for i, keeps := range running {
				if keeps == turnAll {
					all++
				}
				if keeps != turnNone {
					of[i.spec.Account]++
				}
			}
			if all > most || slices.Max(append([]int{0}, of["0"], of["1"], of["2"])) > most {
				t.Fatalf("seed %d, step %d: %d run, by account %v", seed, step, all, of)
			}
			for _, i := range waiting {
				if all < most && of[i.spec.Account] < most {
					t.Fatalf("seed %d, step %d: %s waits while %d run, by account %v", seed, step, i.id, all, of)
				}
			}
			if r, q := a.counts(); r != len(running) || q != len(waiting) {
				t.Fatalf("seed %d, step %d: counts %d, %d; %d run and %d wait", seed, step, r, q, len(running), len(waiting))
			}
		}
	}
}

// playedProcessor says what it is told to.
type playedProcessor struct {
	ran  func() time.Duration
	busy bool
}

func (p *playedProcessor) CPUTime() (time.Duration, error) { return p.ran(), nil }
func (p *playedProcessor) Busy() bool                      { return p.busy }

// An init that waits gives way at once, one that computes after a while, to other
// accounts.
func TestGiveWay(t *testing.T) {
	for name, c := range map[string]struct {
		ran  func(time.Duration) time.Duration // after so long
		want map[time.Duration]turn
	}{
		"computes": {
			func(d time.Duration) time.Duration { return d / 4 },
			map[time.Duration]turn{500 * time.Millisecond: turnAll, 1500 * time.Millisecond: turnAccount, 9 * time.Second: turnAccount},
		},
		"waits": {
			func(d time.Duration) time.Duration { return min(d, 20*time.Millisecond) },
			map[time.Duration]turn{50 * time.Millisecond: turnAll, 350 * time.Millisecond: turnNone, 9 * time.Second: turnNone},
		},
		"waits, then computes": {
			func(d time.Duration) time.Duration { return max(0, d-2*time.Second) },
			map[time.Duration]turn{time.Second: turnNone, 3 * time.Second: turnAccount},
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			a := newAdmission(1, 1, func(*instance) {})
			i, over, began := startOf("a/f/1"), make(chan struct{}), time.Now()
			if err := a.add(i); err != nil {
				t.Fatal(err)
			}
			go a.giveWay(i, &playedProcessor{ran: func() time.Duration { return c.ran(time.Since(began)) }}, over)
			for at := time.Duration(0); at < 10*time.Second; at += 50 * time.Millisecond {
				time.Sleep(time.Until(began.Add(at + time.Millisecond)))
				a.mu.Lock()
				if want, ok := c.want[at]; ok && a.running[i] != want {
					t.Errorf("%s, after %v: %d, want %d", name, at, a.running[i], want)
				}
				a.mu.Unlock()
			}
			close(over)
		})
	}
}

// Inits that compute, each with as little of the processors as is left for it, do
// not pass for some that wait: more and more would compute, and all too slowly.
func TestStarvedKeepTheirTurns(t *testing.T) {
	const cores, accounts, each, step = 2, 6, 20, 10 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		ran, over, most := map[*instance]time.Duration{}, map[*instance]chan struct{}{}, 0
		var a *admission
		a = newAdmission(2*cores, accounts*each, func(i *instance) {
			ran[i], over[i] = 0, make(chan struct{})
			go a.giveWay(i, &playedProcessor{busy: true, ran: func() time.Duration {
				a.mu.Lock()
				defer a.mu.Unlock()
				return ran[i]
			}}, over[i])
		})
		for n := range accounts * each {
			if err := a.add(startOf(fmt.Sprintf("%d/f/%d", n%accounts, n))); err != nil {
				t.Fatal(err)
			}
		}
		for running, queued := a.counts(); running+queued > 0; running, queued = a.counts() {
			time.Sleep(step)
			var done []*instance
			a.mu.Lock()
			most = max(most, len(ran))
			share := step * cores / time.Duration(max(cores, len(ran)))
			for i := range ran {
				if ran[i] += share; ran[i] >= 2*time.Second {
					done = append(done, i)
				}
			}
			for _, i := range done {
				delete(ran, i)
				close(over[i])
			}
			a.mu.Unlock()
			for _, i := range done {
				a.done(i)
			}
		}
		if most > accounts*2*cores {
			t.Errorf("%d computed at once, want %d of each account at most", most, 2*cores)
		}
	})
}
