package events_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"thaw/cluster"
	"thaw/events"
)

const (
	token   = "a token of a fleet for tests"
	account = "000000000000"
	unit    = 100 * time.Millisecond
)

// units is Lambda's policy with 100 ms for each minute, and 10 ms for each second.
func units(context.Context, events.Event) events.Policy {
	return events.Policy{Retries: 2, Delays: []time.Duration{unit, 2 * unit}, MaxAge: time.Hour, Backoff: unit / 10, MaxBackoff: 5 * unit}
}

// open serves a cluster and opens a queue on it.
func open(t *testing.T, o events.Options) *events.Queue {
	t.Helper()
	_, q := openOn(t, t.TempDir(), o)
	return q
}

func openOn(t *testing.T, dir string, o events.Options) (*cluster.Server, *events.Queue) {
	t.Helper()
	s, err := cluster.Serve(t.Context(), cluster.ServerOptions{Dir: dir, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, openAt(t, s.URL(), o)
}

func openAt(t *testing.T, url string, o events.Options) *events.Queue {
	t.Helper()
	c, err := cluster.Dial(t.Context(), url, token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if o.Policy == nil {
		o.Policy = units
	}
	o.Warn = func(line string) { t.Log(line) }
	q, err := events.Open(t.Context(), c, o)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// tries notes what was tried, and answers by a script.
type tries struct {
	script func(e events.Event) events.Outcome

	mu  sync.Mutex // guards all and at
	all []events.Event
	at  []time.Time // of each, by the wall clock, as delays are
}

func (i *tries) Invoke(_ context.Context, e events.Event) events.Outcome {
	i.mu.Lock()
	i.all, i.at = append(i.all, e), append(i.at, time.Now().Round(0))
	i.mu.Unlock()
	if i.script == nil {
		return events.Outcome{Kind: events.Succeeded}
	}
	return i.script(e)
}

// of gives the tries of one event.
func (i *tries) of(id string) (found []events.Event) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, e := range i.all {
		if e.ID == id {
			found = append(found, e)
		}
	}
	return found
}

// pauses gives the time between the tries of one event.
func (i *tries) pauses(id string) (all []time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var last time.Time
	for n, e := range i.all {
		if e.ID != id {
			continue
		}
		if !last.IsZero() {
			all = append(all, i.at[n].Sub(last))
		}
		last = i.at[n]
	}
	return all
}

func (i *tries) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.all)
}

// run runs the queue until the test ends, or stop is called.
func run(t *testing.T, q *events.Queue, i events.Invoker) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx, i) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func event(function, id string) events.Event {
	return events.Event{ID: id, Account: account, Function: function, Payload: []byte(`{"id":"` + id + `"}`)}
}

func put(t *testing.T, q *events.Queue, e events.Event) {
	t.Helper()
	if err := q.Put(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(3 * time.Minute); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not within 3 minutes: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func letters(t *testing.T, q *events.Queue) []events.DeadLetter {
	t.Helper()
	l, err := q.List(t.Context(), account, "", 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestDelivery(t *testing.T) {
	t.Parallel()
	q := open(t, events.Options{})
	i := &tries{}
	run(t, q, i)
	want := event("f", "one")
	want.Qualifier, want.Trace, want.Source, want.Payload = "live", "Root=1-2-3", "s3.amazonaws.com", bytes.Repeat([]byte("x"), events.MaxPayload)
	want.Accepted = time.Now().Add(-time.Minute).Round(0)
	put(t, q, want)
	eventually(t, "a try", func() bool { return len(i.of("one")) == 1 })
	got := i.of("one")[0]
	if !got.Accepted.Equal(want.Accepted) || !bytes.Equal(got.Payload, want.Payload) || got.Qualifier != "live" || got.Trace != want.Trace || got.Source != want.Source || got.Attempt != 0 {
		t.Errorf("got %.200v", got)
	}
	put(t, q, want) // within two minutes
	put(t, q, event("f", "two"))
	eventually(t, "a try", func() bool { return len(i.of("two")) == 1 })
	if n := len(i.of("one")); n != 1 {
		t.Errorf("tried %d times", n)
	}
}

func TestRefusesWhatIsNoEvent(t *testing.T) {
	t.Parallel()
	q := open(t, events.Options{})
	for name, change := range map[string]func(*events.Event){
		"no id":         func(e *events.Event) { e.ID = "" },
		"no account":    func(e *events.Event) { e.Account = "" },
		"no function":   func(e *events.Event) { e.Function = "" },
		"long function": func(e *events.Event) { e.Function = string(make([]byte, 300)) },
		"long payload":  func(e *events.Event) { e.Payload = make([]byte, events.MaxPayload+1) },
		"long context":  func(e *events.Event) { e.ClientContext = string(make([]byte, 9000)) },
	} {
		e := event("f", "x")
		change(&e)
		if err := q.Put(t.Context(), e); err == nil || errors.Is(err, events.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPolicy runs the policy on a real cluster: who is tried how often, in
// which order, and what becomes of it.
func TestPolicy(t *testing.T) {
	t.Parallel()
	q := open(t, events.Options{})
	kinds := map[string][]events.Kind{
		"good":     {events.Succeeded},
		"flaky":    {events.FunctionError, events.FunctionError, events.Succeeded},
		"bad":      {events.FunctionError, events.FunctionError, events.FunctionError},
		"crowded":  {events.Throttled, events.Throttled, events.SystemError, events.Throttled, events.Succeeded},
		"mixed":    {events.Throttled, events.FunctionError, events.SystemError, events.FunctionError, events.Throttled, events.FunctionError},
		"reserved": {events.Refused},
		"silent":   {events.Untried, events.Succeeded},
	}
	i := &tries{}
	i.script = func(e events.Event) events.Outcome {
		if e.Attempt >= len(kinds[e.ID]) {
			t.Errorf("%s is tried once more", e.ID)
			return events.Outcome{Kind: events.Succeeded}
		}
		return events.Outcome{Kind: kinds[e.ID][e.Attempt], Reason: fmt.Sprintf("try %d", e.Attempt)}
	}
	run(t, q, i)
	for id := range kinds {
		put(t, q, event("of-"+id, id))
	}
	const second, minute = unit / 10, unit
	waits := map[string][]time.Duration{ // at least
		"flaky":   {minute, 2 * minute},
		"bad":     {minute, 2 * minute},
		"crowded": {second, 2 * second, 4 * second, 8 * second},
		"mixed":   {second, minute, second, 2 * minute, second},
		"silent":  {second},
	}
	for id, want := range kinds {
		eventually(t, "all tries of "+id, func() bool { return len(i.of(id)) == len(want) })
		for n, e := range i.of(id) {
			if e.Attempt != n || e.ID != id || string(e.Payload) != `{"id":"`+id+`"}` {
				t.Errorf("try %d of %s has %+v", n, id, e)
			}
		}
		for n, pause := range i.pauses(id) { // delays are kept in whole milliseconds
			if least := waits[id][n] - time.Millisecond; pause < least {
				t.Errorf("%s is tried again after %v, want %v at least", id, pause, least)
			}
		}
	}
	eventually(t, "dead letters", func() bool { return len(letters(t, q)) == 3 })
	want := map[string]string{"bad": "RetriesExhausted try 2", "mixed": "RetriesExhausted try 5", "reserved": "ZeroReservedConcurrency try 0"}
	for _, l := range letters(t, q) {
		if s := l.Reason + " " + l.Last; want[l.Event.ID] != s {
			t.Errorf("%s is dead: %s, want %s", l.Event.ID, s, want[l.Event.ID])
		}
	}
}

// TestMaxAge: an event is dead once it is too old, tried or not.
func TestMaxAge(t *testing.T) {
	t.Parallel()
	q := open(t, events.Options{Policy: func(_ context.Context, e events.Event) events.Policy {
		p := units(t.Context(), e)
		if e.ID == "late" || e.Attempt >= 3 { // however slow this machine is, the other is tried some times
			p.MaxAge = 10 * unit
		}
		return p
	}})
	i := &tries{script: func(events.Event) events.Outcome { return events.Outcome{Kind: events.Throttled, Reason: "no room"} }}
	late := event("late", "late")
	late.Accepted = time.Now().Add(-11 * unit)
	put(t, q, late)
	put(t, q, event("f", "throttled"))
	run(t, q, i)
	eventually(t, "dead letters", func() bool { return len(letters(t, q)) == 2 })
	for _, l := range letters(t, q) {
		if last := map[string]string{"throttled": "no room"}[l.Event.ID]; l.Reason != "EventAgeExceeded" || l.Last != last {
			t.Errorf("%s: %s, %q, want %q", l.Event.ID, l.Reason, l.Last, last)
		}
	}
	if n := len(i.of("late")); n != 0 {
		t.Errorf("what was too old was tried %d times", n)
	}
	if n := len(i.of("throttled")); n < 3 {
		t.Errorf("throttled %d times only", n)
	}
}

// TestBacklog: one function's thousand throttled events do not delay another's:
// of the thousand, only a few are tried between the other's put and its try.
func TestBacklog(t *testing.T) {
	t.Parallel()
	q := open(t, events.Options{PerFunction: 64, Policy: func(ctx context.Context, e events.Event) events.Policy {
		p := units(ctx, e)
		p.Backoff = unit // at first 64 are tried, then ten a second at most: the other's may take seconds on a slow machine
		return p
	}})
	i := &tries{}
	i.script = func(e events.Event) events.Outcome {
		if e.Function == "crowded" {
			return events.Outcome{Kind: events.Throttled}
		}
		return events.Outcome{Kind: events.Succeeded}
	}
	var g sync.WaitGroup
	for w := range 8 {
		g.Go(func() {
			for n := range 125 {
				if err := q.Put(t.Context(), event("crowded", fmt.Sprintf("%d-%d", w, n))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	g.Wait()
	run(t, q, i)
	eventually(t, "throttling", func() bool { return i.count() >= 16 })
	worst, latest := 0, time.Duration(0)
	for n := range 20 {
		id := fmt.Sprintf("other-%d", n)
		before, start := i.count(), time.Now()
		put(t, q, event("other", id))
		eventually(t, "the other's try", func() bool { return len(i.of(id)) == 1 })
		worst, latest = max(worst, i.count()-before), max(latest, time.Since(start))
	}
	if worst > 100 {
		t.Errorf("%d others were tried first", worst)
	}
	t.Logf("at most %d others were tried first, and it took at most %v; %d tries in all", worst, latest, i.count())
}

// TestBounds: of one function, no more events are tried at a time than allowed,
// and what takes all of that does not keep others waiting.
func TestBounds(t *testing.T) {
	t.Parallel()
	q := open(t, events.Options{PerFunction: 3, Bytes: 1})
	release := make(chan struct{})
	i := &tries{script: func(e events.Event) events.Outcome {
		if e.Function == "slow" {
			<-release
		}
		return events.Outcome{Kind: events.Succeeded}
	}}
	run(t, q, i)
	for n := range 10 {
		put(t, q, event("slow", fmt.Sprint("slow", n)))
	}
	eventually(t, "tries", func() bool { return i.count() >= 1 })
	put(t, q, event("f", "other"))
	eventually(t, "the other's try", func() bool { return len(i.of("other")) == 1 })
	if n := i.count() - 1; n > 3 {
		t.Errorf("%d at a time", n)
	}
	close(release)
	eventually(t, "all", func() bool { return i.count() == 11 })
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	q := open(t, events.Options{Policy: func(context.Context, events.Event) events.Policy {
		p := events.DefaultPolicy()
		p.Retries = 0
		return p
	}})
	ctx := t.Context()
	i := &tries{script: func(e events.Event) events.Outcome {
		return events.Outcome{Kind: events.FunctionError, Reason: "it failed"}
	}}
	run(t, q, i)
	for n := range 3 {
		put(t, q, event("f", fmt.Sprint("f", n)))
		eventually(t, "a dead letter", func() bool { return len(letters(t, q)) == n+1 })
	}
	put(t, q, event("g", "g"))
	other := event("f", "of another account")
	other.Account = "111111111111"
	put(t, q, other)
	eventually(t, "a dead letter", func() bool { return len(letters(t, q)) == 4 })
	theirs := func() []events.DeadLetter {
		l, err := q.List(ctx, other.Account, "", 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	eventually(t, "a dead letter of another account", func() bool { return len(theirs()) == 1 })

	page, err := q.List(ctx, account, "f", 0, 2)
	if err != nil || len(page) != 2 || page[0].Event.ID != "f0" || page[1].Event.ID != "f1" || page[0].Last != "it failed" || page[0].Event.Attempt != 1 || page[0].Died.IsZero() {
		t.Fatalf("first page %+v, %v", page, err)
	}
	page, err = q.List(ctx, account, "f", page[1].Position, 2)
	if err != nil || len(page) != 1 || page[0].Event.ID != "f2" || string(page[0].Event.Payload) != `{"id":"f2"}` {
		t.Fatalf("second page %+v, %v", page, err)
	}
	for _, err := range []error{q.Remove(ctx, account, "nothing"), q.Replay(ctx, account, "nothing"), q.Remove(ctx, account, other.ID), q.Replay(ctx, account, other.ID)} {
		if !errors.Is(err, events.ErrNotFound) {
			t.Errorf("got %v", err)
		}
	}
	if err := q.Remove(ctx, account, "f0"); err != nil {
		t.Error(err)
	}
	if err := q.Replay(ctx, account, "f1"); err != nil {
		t.Error(err)
	}
	eventually(t, "a replay", func() bool { return len(i.of("f1")) == 2 })
	if e := i.of("f1")[1]; e.Attempt != 0 || string(e.Payload) != `{"id":"f1"}` || !e.Accepted.After(i.of("f1")[0].Accepted) {
		t.Errorf("replayed %+v", e)
	}
	eventually(t, "it is dead again", func() bool { l := letters(t, q); return len(l) == 3 && l[2].Event.ID == "f1" })
	if l := theirs(); len(l) != 1 || l[0].Event.ID != other.ID {
		t.Errorf("another account has %+v", l)
	}
}

// TestTwoRun: of several processes, each event is tried by one.
func TestTwoRun(t *testing.T) {
	t.Parallel()
	s, first := openOn(t, t.TempDir(), events.Options{AckWait: time.Hour}) // neither of them goes silent
	second := openAt(t, s.URL(), events.Options{AckWait: time.Hour})
	var one, two tries
	run(t, first, &one)
	run(t, second, &two)
	for n := range 100 {
		put(t, first, event(fmt.Sprint("f", n%5), fmt.Sprint(n)))
	}
	eventually(t, "all tries", func() bool { return one.count()+two.count() >= 100 })
	for n := range 100 {
		if k := len(one.of(fmt.Sprint(n))) + len(two.of(fmt.Sprint(n))); k != 1 {
			t.Errorf("%d was tried %d times", n, k)
		}
	}
}

// TestStop: what is being tried when Run ends is tried again by whoever runs next.
func TestStop(t *testing.T) {
	t.Parallel()
	s, q := openOn(t, t.TempDir(), events.Options{AckWait: time.Hour})
	began := make(chan struct{})
	stop := run(t, q, invokerFunc(func(ctx context.Context, _ events.Event) events.Outcome {
		close(began)
		<-ctx.Done()
		return events.Outcome{Kind: events.SystemError}
	}))
	put(t, q, event("f", "one"))
	<-began
	stop()
	i := &tries{}
	run(t, openAt(t, s.URL(), events.Options{AckWait: time.Hour}), i)
	eventually(t, "another try", func() bool { return len(i.of("one")) == 1 })
	if e := i.of("one")[0]; e.Attempt != 0 {
		t.Errorf("a try that was cut short counts: %+v", e)
	}
}

type invokerFunc func(context.Context, events.Event) events.Outcome

func (f invokerFunc) Invoke(ctx context.Context, e events.Event) events.Outcome { return f(ctx, e) }
