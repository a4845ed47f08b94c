package frontend

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// rawWorker answers the first request with some bytes, as they are, and further
// ones on the same or another connection with "second".
func rawWorker(t *testing.T, first string) *workers {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	t.Cleanup(work.Wait)
	t.Cleanup(func() { _ = l.Close() })
	var once sync.Once
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
			work.Go(func() {
				in := bufio.NewReader(c)
				for {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, r.Body)
					answer := "HTTP/1.1 200 OK\r\nThaw-Request-Id: r\r\nContent-Length: 6\r\n\r\nsecond"
					once.Do(func() { answer = first })
					_, _ = io.WriteString(c, answer)
				}
			})
		}
	})
	w := newWorkers(&http.Client{}, testToken)
	w.known["w"] = l.Addr().String()
	t.Cleanup(func() { w.lanes.close("") })
	return w
}

// However oddly a worker answers one invoke, the next gets its own answer, or an error.
func TestLaneHostile(t *testing.T) {
	const fake = "HTTP/1.1 200 OK\r\nThaw-Request-Id: r\r\nContent-Length: 5\r\n\r\nOTHER"
	for name, first := range map[string]string{
		"two answers":          "HTTP/1.1 200 OK\r\nThaw-Request-Id: r\r\nContent-Length: 5\r\n\r\nfirst" + fake,
		"two, the first short": "HTTP/1.1 204 No Content\r\n\r\n" + fake,
		"two after chunks":     "HTTP/1.1 200 OK\r\nThaw-Request-Id: r\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\nA: b\r\n\r\n" + fake,
		"two after a refusal":  "HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n\r\n{}" + fake,
		"a head of more bytes": "HTTP/1.1 200 OK\r\nThaw-Request-Id: r\r\nContent-Length: 0\r\n\r\n" + fake,
		"100 before":           "HTTP/1.1 100 Continue\r\n\r\n" + fake,
		"103 before":           "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + fake,
		"101":                  "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + fake,
		"two lengths":          "HTTP/1.1 200 OK\r\nThaw-Request-Id: r\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nfirst" + fake,
		"length and chunks":    "HTTP/1.1 200 OK\r\nThaw-Request-Id: r\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n" + fake,
		"garbage":              "\x00\x01\x02 no HTTP at all\r\n\r\n" + fake,
	} {
		w := rawWorker(t, first)
		ask := func() (string, error) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			a, err := w.invoke(ctx, &leased{id: "i", worker: w.known["w"]}, &invocation{
				requestID: "r", payload: &buffer{b: []byte("{}")}, deadline: time.Now().Add(time.Hour),
			})
			if err != nil {
				return "", err
			}
			defer a.close()
			got, err := io.ReadAll(a)
			return string(got), err
		}
		got, err := ask()
		if strings.Contains(got, "OTHER") {
			t.Errorf("%s: the first got %q, %v", name, got, err)
		}
		if got, err := ask(); got != "second" {
			t.Errorf("%s: the next got %q, %v", name, got, err)
		}
	}
}
