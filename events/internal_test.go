package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"thaw/cluster"
)

func TestGate(t *testing.T) {
	now, second := time.Now(), time.Second
	g := newGate(8)
	check := func(step string, room int, closed time.Duration) {
		t.Helper()
		if n, d := g.room(now); n != room || d != closed {
			t.Errorf("%s: room %d, closed %v; want %d, %v", step, n, d, room, closed)
		}
	}
	check("new", 8, 0)
	for range 3 {
		g.enter()
	}
	check("three are under way", 5, 0)
	g.learn(Throttled, second, now)
	check("the first is throttled", 0, second)
	g.learn(Throttled, second, now)
	g.learn(SystemError, second, now)
	check("and the others, which does not count", 0, second)
	for range 3 {
		g.leave()
	}
	now = now.Add(second)
	check("open for half as many", 4, 0)
	for _, rest := range []time.Duration{2, 4, 8, 8} {
		g.learn(Throttled, second, now)
		check("again", 0, rest*second)
		now = now.Add(rest * second)
	}
	check("one probes", 1, 0)
	g.learn(Succeeded, second, now)
	check("there is room", 2, 0)
	g.learn(FunctionError, second, now)
	g.learn(Succeeded, second, now)
	g.learn(Succeeded, second, now)
	check("all of it", 8, 0)
	g.learn(Throttled, second, now)
	check("it begins anew", 0, second)
	g.learn(Succeeded, second, now)
	check("unless one that was under way runs", 8, 0)
	if !g.idle() {
		t.Error("something is under way")
	}
}

// TestTurns: of those that are due, each function's are taken in turn.
func TestTurns(t *testing.T) {
	s := newSchedule()
	now := time.Now()
	a, b, c := ownerOf("1", "a"), ownerOf("1", "b"), ownerOf("1", "c")
	for n := range uint64(100) {
		s.add(delayed{a, now.Add(-time.Duration(100-n) * time.Second), n})
	}
	s.add(delayed{b, now, 1000})
	s.add(delayed{b, now.Add(-time.Millisecond), 1001})
	s.add(delayed{c, now.Add(time.Minute), 2000})
	names := func(due []delayed) (got []uint64) {
		for _, d := range due {
			got = append(got, d.seq)
		}
		return got
	}
	due, next := s.take(now, 5)
	if got := fmt.Sprint(names(due)); got != "[0 1001 1 1000 2]" || next != 0 {
		t.Errorf("took %s, next in %v", got, next)
	}
	due, next = s.take(now, 1000)
	if len(due) != 97 || due[0].seq != 3 || next != time.Minute {
		t.Errorf("took %d, next in %v", len(due), next)
	}
	due, next = s.take(now.Add(time.Hour), 1000)
	if len(due) != 1 || next < time.Minute {
		t.Errorf("took %d, next in %v", len(due), next)
	}
}

func TestMessages(t *testing.T) {
	e := Event{ID: "id", Account: "1", Function: "f", Qualifier: "q\n\"ü", Payload: []byte("{}\x00"), ClientContext: "e30=", Trace: "Root", Source: "s3",
		Accepted: time.Now().Round(0).UTC(), Attempt: 3, Failures: 1, Refusals: 2}
	o := ownerOf(e.Account, e.Function)
	due := time.UnixMilli(1234567890123)
	m := encode(o.later(e.ID, due), e)
	if strings.ContainsAny(m.Header.Get(headerEvent), "\r\n") {
		t.Error("the header has several lines")
	}
	got, err := decode(m.Header, m.Data)
	if a, b := mustJSON(got), mustJSON(e); err != nil || a != b || !bytes.Equal(got.Payload, e.Payload) {
		t.Errorf("%s became %s, %v", b, a, err)
	}
	if owner, at, err := parseLater(m.Subject); err != nil || owner != o || !at.Equal(due) {
		t.Errorf("%s gives %s, %v, %v", m.Subject, owner, at, err)
	}
	for _, bad := range []string{"", "{", "[]", `{"ID":"x"}`, `{"ID":1}`, strings.Repeat(" ", maxHeader+1), mustJSON(Event{ID: "i", Account: "a", Function: "f", Accepted: due, Attempt: -1})} {
		if _, err := decode(nats.Header{headerEvent: {bad}}, nil); err == nil {
			t.Errorf("took %.40q", bad)
		} else if strings.Contains(err.Error(), "{") {
			t.Errorf("shows what is in the header: %v", err)
		}
	}
}

// FuzzSubjects: what is taken for a subject is the subject of what it gives.
func FuzzSubjects(f *testing.F) {
	for _, s := range []string{"31.66", ".", "31.", "3A.66", "thaw.events.later.1.31.66.6964", "thaw.events.later.x.31.66.6964", "thaw.events.later.1.31.66"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if o, err := parseOwner(s); err == nil && (string(o) != s || !strings.HasPrefix(o.queue(), prefixQueue) || strings.ContainsAny(s, " *>")) {
			t.Errorf("took %q", s)
		}
		if o, due, err := parseLater(s); err == nil && (strings.Count(string(o), ".") != 1 || due.IsZero()) {
			t.Errorf("took %q", s)
		}
	})
}

// FuzzDecode: no header makes an event that could not have been put.
func FuzzDecode(f *testing.F) {
	f.Add(mustJSON(Event{ID: "id", Account: "1", Function: "f", Accepted: time.Now()}), []byte("{}"))
	f.Add(`{"ID":"x","Attempt":-1}`, []byte{})
	f.Add(`null`, []byte(nil))
	f.Fuzz(func(t *testing.T, header string, payload []byte) {
		e, err := decode(nats.Header{headerEvent: {header}}, payload)
		if err != nil {
			return
		}
		if err := e.check(); err != nil {
			t.Fatal(err)
		}
		again, err := decode(encode("s", e).Header, payload)
		if err != nil || mustJSON(again) != mustJSON(e) {
			t.Fatalf("%+v became %+v, %v", e, again, err)
		}
	})
}

func TestUnavailable(t *testing.T) {
	other := errors.New("other")
	for _, c := range []struct{ err, want error }{
		{fmt.Errorf("%w: %w", cluster.ErrUnavailable, &jetstream.APIError{Code: 503, ErrorCode: noRoom, Description: "maximum messages per subject exceeded"}), ErrFull},
		{fmt.Errorf("%w: %w", cluster.ErrUnavailable, &jetstream.APIError{Code: 503, ErrorCode: noRoom, Description: "disk"}), ErrUnavailable},
		{cluster.ErrUnavailable, ErrUnavailable},
		{other, other},
	} {
		if err := unavailable(c.err); !errors.Is(err, c.want) {
			t.Errorf("%v became %v", c.err, err)
		}
	}
}

func TestNormal(t *testing.T) {
	p := Policy{Retries: 7, Delays: []time.Duration{-1, 2}, MaxAge: time.Second}
	n := p.normal()
	if n.Retries != 2 || n.Delays[0] != 0 || n.Backoff <= 0 || n.MaxBackoff < n.Backoff || p.Delays[0] != -1 {
		t.Errorf("%+v", n)
	}
	if b, err := json.Marshal(Event{Payload: []byte("secret")}); err != nil || bytes.Contains(b, []byte("secret")) || bytes.Contains(b, []byte("c2VjcmV0")) {
		t.Errorf("an event's JSON shows its payload: %s, %v", b, err)
	}
}

// Events that an earlier build has queued are read, and found where they lie.
func TestEventOfOld(t *testing.T) {
	const old = `{"ID":"id","Account":"000000000000","Function":"f","Qualifier":"live","ClientContext":"e30=","Trace":"Root=1","Source":"s3.amazonaws.com",` +
		`"Accepted":"2023-11-14T22:13:20.000000005Z","Attempt":3,"Failures":1,"Refusals":2}`
	want := Event{ID: "id", Account: "000000000000", Function: "f", Qualifier: "live", Payload: []byte("{}"), ClientContext: "e30=", Trace: "Root=1",
		Source: "s3.amazonaws.com", Accepted: time.Unix(1_700_000_000, 5).UTC(), Attempt: 3, Failures: 1, Refusals: 2}
	if got, err := decode(nats.Header{"Thaw-Event": {old}}, []byte("{}")); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	o := ownerOf(want.Account, want.Function)
	for want, got := range map[string]string{
		"thaw.events.q.303030303030303030303030.66":                        o.queue(),
		"thaw.events.later.1700000000000.303030303030303030303030.66.6964": o.later("id", want.Accepted),
		"thaw.events.dead.303030303030303030303030.66.6964":                o.dead("id"),
	} {
		if got != want {
			t.Errorf("subject %s, was %s", got, want)
		}
	}
}
