package events

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	headerEvent  = "Thaw-Event"  // the event without its payload, as JSON
	headerLetter = "Thaw-Letter" // of dead letters: why and when they died, as JSON
	// maxHeader is more than the JSON of an event with the longest texts takes.
	maxHeader = 64 << 10

	prefixQueue = "thaw.events.q."
	prefixLater = "thaw.events.later."
	prefixDead  = "thaw.events.dead."
	subjectWake = "thaw.events.wake" // tells those who run that something waits: account and function follow in the data
)

// owner is account and function as subjects have them. Events of one owner share
// a line.
type owner string

func ownerOf(account, function string) owner {
	return owner(hex.EncodeToString([]byte(account)) + "." + hex.EncodeToString([]byte(function)))
}

// parseOwner takes what ownerOf gives.
func parseOwner(s string) (owner, error) {
	account, function, ok := strings.Cut(s, ".")
	if !ok || !isHex(account) || !isHex(function) {
		return "", fmt.Errorf("events: %.50q names no function", s)
	}
	return owner(s), nil
}

func isHex(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && s != "" && len(s) <= 2*maxName && strings.ToLower(s) == s
}

func (o owner) queue() string { return prefixQueue + string(o) }

func (o owner) dead(id string) string {
	return prefixDead + string(o) + "." + hex.EncodeToString([]byte(id))
}

func (o owner) later(id string, due time.Time) string {
	return prefixLater + strconv.FormatInt(due.UnixMilli(), 10) + "." + string(o) + "." + hex.EncodeToString([]byte(id))
}

// parseLater takes what later gives.
func parseLater(subject string) (owner, time.Time, error) {
	parts := strings.Split(strings.TrimPrefix(subject, prefixLater), ".")
	if len(parts) == 4 && isHex(parts[3]) {
		due, err := strconv.ParseInt(parts[0], 10, 64)
		o, wrong := parseOwner(parts[1] + "." + parts[2])
		if err == nil && wrong == nil {
			return o, time.UnixMilli(due), nil
		}
	}
	return "", time.Time{}, fmt.Errorf("events: subject %.80q is none of a delayed event", subject)
}

// encode makes a message of an event.
func encode(subject string, e Event) *nats.Msg {
	return &nats.Msg{Subject: subject, Data: e.Payload, Header: nats.Header{headerEvent: {mustJSON(e)}}}
}

// decode is encode's inverse.
func decode(h nats.Header, payload []byte) (Event, error) {
	var e Event
	if err := fromJSON(h.Get(headerEvent), &e); err != nil {
		return Event{}, fmt.Errorf("events: a message is no event: %w", err)
	}
	e.Payload = payload
	return e, e.check()
}

// mustJSON encodes what always can be.
func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic("events: " + err.Error())
	}
	return string(b)
}

// fromJSON decodes a header. Its error does not show what is in it.
func fromJSON(s string, v any) error {
	switch {
	case len(s) > maxHeader:
		return fmt.Errorf("header of %d bytes", len(s))
	case json.Unmarshal([]byte(s), v) != nil:
		return errors.New("header is not the JSON it should be")
	}
	return nil
}
