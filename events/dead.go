package events

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"thaw/cluster"
)

// maxList bounds what List returns, payloads and all.
const maxList = 1000

// DeadLetter is an event that will not be tried again, unless it is replayed.
type DeadLetter struct {
	Event  Event
	Died   time.Time
	Reason string // as Decision has it
	Last   string // how the last try ended, for people; may be empty
	// Position orders dead letters by the time they died.
	Position uint64
}

// obituary is what a dead letter's header says beside its event.
type obituary struct {
	Died   time.Time
	Reason string
	Last   string `json:",omitempty"`
}

// bury keeps an event as a dead letter.
func (q *Queue) bury(ctx context.Context, e Event, reason string) error {
	last := e.Last
	e.Last = "" // said once
	m := encode(ownerOf(e.Account, e.Function).dead(e.ID), e)
	q.counts.dead.WithLabelValues(reason).Inc()
	m.Header.Set(headerLetter, mustJSON(obituary{time.Now(), reason, last}))
	return q.publish(ctx, m, fmt.Sprintf("%s/%d/dead/%d", e.ID, e.Attempt, e.Accepted.UnixNano()))
}

// List reads at most limit dead letters of an account, and at most 1000, those
// that died first first; of one function, unless that is empty; those after a
// position. They are kept for 14 days, or until 2 GiB are full.
func (q *Queue) List(ctx context.Context, account, function string, after uint64, limit int) ([]DeadLetter, error) {
	subject := prefixDead + hex.EncodeToString([]byte(account)) + ".*.*"
	if function != "" {
		subject = prefixDead + string(ownerOf(account, function)) + ".*"
	}
	var found []DeadLetter
	for size := 0; len(found) < min(limit, maxList) && size < 64*MaxPayload; {
		l, err := q.letter(ctx, subject, after+1)
		if errors.Is(err, ErrNotFound) {
			break
		}
		if err != nil {
			return nil, err
		}
		found, after = append(found, l), l.Position
		size += len(l.Event.Payload)
	}
	return found, nil
}

// Replay puts a dead letter back as if it had just been accepted, under its
// request id, or returns ErrNotFound.
func (q *Queue) Replay(ctx context.Context, account, id string) error {
	l, err := q.letter(ctx, lettersOf(account, id), 1)
	if err != nil {
		return err
	}
	e := l.Event
	if err := e.check(); err != nil {
		return err
	}
	e.Accepted, e.Attempt, e.Failures, e.Refusals, e.Last = time.Now(), 0, 0, 0, ""
	if err := q.enqueue(ctx, e, e.ID+"/replay/"+strconv.FormatUint(l.Position, 10)); err != nil {
		return err
	}
	return q.forget(ctx, q.dead, l.Position)
}

// Remove forgets a dead letter, or returns ErrNotFound.
func (q *Queue) Remove(ctx context.Context, account, id string) error {
	l, err := q.letter(ctx, lettersOf(account, id), 1)
	if err != nil {
		return err
	}
	return q.forget(ctx, q.dead, l.Position)
}

func lettersOf(account, id string) string {
	return prefixDead + hex.EncodeToString([]byte(account)) + ".*." + hex.EncodeToString([]byte(id))
}

// letter reads the first dead letter at or after a position.
func (q *Queue) letter(ctx context.Context, subject string, from uint64) (DeadLetter, error) {
	var m *jetstream.RawStreamMsg
	err := q.conn.Try(ctx, func(ctx context.Context) (err error) {
		m, err = q.dead.GetMsg(ctx, from, jetstream.WithGetMsgSubject(subject))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return cluster.ErrNotFound
		}
		return err
	})
	if errors.Is(err, cluster.ErrNotFound) {
		return DeadLetter{}, ErrNotFound
	}
	if err != nil {
		return DeadLetter{}, fmt.Errorf("events: read dead letter: %w", unavailable(err))
	}
	l := DeadLetter{Position: m.Sequence}
	var o obituary
	if l.Event, err = decode(m.Header, m.Data); err == nil {
		err = fromJSON(m.Header.Get(headerLetter), &o)
	}
	if err != nil { // who lists it sees what it is
		o = obituary{m.Time, reasonUnreadable, err.Error()}
	}
	l.Died, l.Reason, l.Last = o.Died, o.Reason, o.Last
	return l, nil
}

// forget deletes a message; that it is not there is fine.
func (q *Queue) forget(ctx context.Context, s jetstream.Stream, seq uint64) error {
	err := q.conn.Try(ctx, func(ctx context.Context) error {
		err := s.DeleteMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) { // which may be for any reason
			if _, err := s.GetMsg(ctx, seq); errors.Is(err, jetstream.ErrMsgNotFound) {
				return nil
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("events: delete event: %w", unavailable(err))
	}
	return nil
}
