package runtimeapi

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"thaw/runtimeapi/http1"
)

// send serves an API to a client that sends some bytes and ends, as one does that
// is killed: reset, if what it was sent meanwhile is lost too. It returns when
// nothing more can come of it.
func (b *bench) send(t *testing.T, raw string, reset bool) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- (&http1.Server{Handler: b.Answer}).Serve(l) }()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	if reset {
		_ = c.(*net.TCPConn).SetLinger(0)
	} else {
		_ = c.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, c); err != nil { // the server is done with it
			t.Error(err)
		}
	}
	_ = c.Close()
	_ = l.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// Wherever a runtime's answer breaks off, it is never taken for a whole one, nor
// for an error that the runtime told.
func TestCutRuntime(t *testing.T) {
	const id = "invocation/r1/"
	answer := `{"n":1}`
	length := fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(answer), answer)
	chunks := "Transfer-Encoding: chunked\r\n\r\n4\r\n" + answer[:4] + "\r\n3\r\n" + answer[4:] + "\r\n0\r\n"
	for name, c := range map[string]struct{ path, rest, end string }{
		"a length":             {id + "response", length, "end::"},
		"a length and 100":     {id + "response", "Expect: 100-continue\r\n" + length, "end::"},
		"chunks":               {id + "response", chunks + "\r\n", "end::"},
		"chunks and a failure": {id + "response", "Trailer: " + errorTypeHeader + "\r\n" + chunks + errorTypeHeader + ": Function.Late\r\n\r\n", "end:Function.Late:"},
		"an error":             {id + "error", errorTypeHeader + ": Function.Own\r\n" + length, "end::"},
		"an error's cause":     {id + "error", "Content-Type: " + causeType + "\r\n" + errorTypeHeader + ": Function.Own\r\n" + chunks + "\r\n", "end::"},
	} {
		whole := "POST " + apiRoot + c.path + " HTTP/1.1\r\nHost: x\r\n" + c.rest
		for cut := range len(whole) + 1 {
			for _, reset := range []bool{false, true} {
				b := newBench(t, Options{})
				b.runtime, b.current = running, &invocation{Invoke: oneInvoke, delivered: true}
				b.send(t, whole[:cut], reset)
				told := b.rec.took()
				right := told == "" || strings.Contains(told, " end:Runtime.TruncatedResponse:")
				switch {
				case cut == len(whole) && !reset:
					right = strings.HasSuffix(told, c.end)
				case cut == len(whole): // or its end was lost
					right = right || strings.HasSuffix(told, c.end)
				}
				if !right || strings.Count(told, "end:") > 1 || strings.Contains(told, "begin:r1::false:Runtime.TruncatedResponse") {
					t.Errorf("%s, cut after %d of %d bytes, reset %v: %q", name, cut, len(whole), reset, told)
				}
			}
		}
	}
}
