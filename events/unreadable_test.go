package events_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"thaw/events"
)

// TestUnreadable: messages that are no events do not hold up those that are,
// and are kept for people to see.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	s, q := openOn(t, t.TempDir(), events.Options{})
	c := dialTo(t, s.URL())
	subject := fmt.Sprintf("%x.%x", account, "f")
	for _, to := range []string{"thaw.events.q." + subject, fmt.Sprintf("thaw.events.later.%d.%s.6964", time.Now().UnixMilli(), subject)} {
		_, err := c.JetStream().PublishMsg(t.Context(), &nats.Msg{Subject: to, Data: []byte("?"), Header: nats.Header{"Thaw-Event": {"{"}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	put(t, q, event("f", "good"))
	i := &tries{}
	run(t, q, i)
	eventually(t, "the event's try", func() bool { return len(i.of("good")) == 1 })
	eventually(t, "dead letters", func() bool { return len(letters(t, q)) == 2 })
	for _, l := range letters(t, q) {
		if l.Reason != "Unreadable" {
			t.Errorf("%+v", l)
		}
	}
	empty(t, c)
}
