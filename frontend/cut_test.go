package frontend

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"thaw/functions"
	"thaw/invokewire"
)

// dyingWorker answers each request with the bytes it is given for it, and hangs up.
func dyingWorker(t *testing.T) (w *workers, say chan<- string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	said, ended := make(chan string, 1), make(chan struct{})
	t.Cleanup(func() { <-ended })
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(c, <-said)
			}
			_ = c.Close()
		}
	}()
	w = newWorkers(&http.Client{}, testToken)
	w.known["w"] = l.Addr().String()
	return w, said
}

// Wherever a worker's answer breaks off, the invoke ends with the platform's error,
// whether the answer is collected or passed on.
func TestCutWorker(t *testing.T) {
	w, say := dyingWorker(t)
	f := &Frontend{workers: w, buffers: newBuffers()}
	const ok, chunked = "HTTP/1.1 200 OK\r\n" + invokewire.HeaderRequestID + ": r\r\n", "Transfer-Encoding: chunked\r\n\r\n4\r\n{\"n\"\r\n3\r\n:1}\r\n0\r\n"
	late := invokewire.HeaderFunctionError + ": Unhandled\r\n" + invokewire.HeaderErrorBody + ": " + base64.StdEncoding.EncodeToString([]byte(`{"errorType":"Late"}`)) + "\r\n\r\n"
	failed := invokewire.HeaderFunctionError + ": Unhandled\r\n"
	for name, c := range map[string]struct {
		raw, body, problem string // problem: a failure's, in the body's place
	}{
		"a length":            {raw: ok + "Content-Length: 7\r\n\r\n{\"n\":1}", body: `{"n":1}`},
		"chunks":              {raw: ok + chunked + "\r\n", body: `{"n":1}`},
		"chunks and trailers": {raw: ok + chunked + invokewire.HeaderLogTail + ": eA==\r\n\r\n", body: `{"n":1}`},
		"a late failure":      {raw: ok + chunked + late, problem: `{"errorType":"Late"}`},
		"a failure":           {raw: ok + failed + "Content-Length: 7\r\n\r\n{\"e\":1}", problem: `{"e":1}`},
		"a failure, cut":      {raw: ok + failed + chunked + late, problem: `{"errorType":"Late"}`},
		"no length":           {raw: ok + "\r\n{\"n\":1}"},
		"no length, close":    {raw: ok + "Connection: close\r\n\r\n{\"n\":1}"},
		"HTTP/1.0":            {raw: "HTTP/1.0 200 OK\r\n" + invokewire.HeaderRequestID + ": r\r\n\r\n{\"n\":1}"},
		"no worker's":         {raw: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		"another's answer":    {raw: "HTTP/1.1 200 OK\r\n" + invokewire.HeaderRequestID + ": s\r\nContent-Length: 7\r\n\r\n{\"n\":1}"},
	} {
		for cut := range len(c.raw) + 1 {
			for _, streaming := range []bool{false, true} {
				say <- c.raw[:cut]
				body, problem, err := f.hear(t, streaming)
				w.lanes.close("") // before the next one finds that the worker has hung up
				ends := cut == len(c.raw) && c.body+c.problem != ""
				if ends && (err != nil || problem != c.problem || body != c.body && c.problem == "") || !ends && !errors.Is(err, errBroken) {
					t.Errorf("%s, cut after %d of %d bytes, streaming %v: %q, failure %q, %v", name, cut, len(c.raw), streaming, body, problem, err)
				}
			}
		}
	}
}

// hear invokes, and reads the answer in one of the two ways.
func (f *Frontend) hear(t *testing.T, streaming bool) (body, problem string, err error) {
	inv := &invocation{requestID: "r", payload: f.buffers.get(), deadline: time.Now().Add(time.Hour)}
	inv.payload.b = append(inv.payload.b, "{}"...)
	a, err := f.workers.invoke(t.Context(), &leased{id: "i", worker: f.workers.known["w"]}, inv)
	if err != nil {
		return "", "", err
	}
	defer a.close()
	if !streaming {
		o, err := f.collect(context.Background(), inv, a)
		if o.failed {
			return "", string(o.body.b), err
		}
		return string(o.body.b), "", err
	}
	var got bytes.Buffer
	end := f.relay(a, func(b []byte) error { _, err := got.Write(b); return err })
	if end.code == codeService && !end.alive {
		return got.String(), "", errBroken
	}
	return got.String(), end.details, nil
}

// What a client gets says where it ends, in each version of HTTP: a frontend's
// death never looks like an end.
func TestAnswersSayWhereTheyEnd(t *testing.T) {
	d := newDoor(t)
	d.worker.script = func(payload []byte) []byte {
		return []byte(`"http {\"statusCode\":200,\"body\":\"` + strings.Repeat("x", 10_000) + `\"}"`)
	}
	d.function("f", withURL(functions.URL{ID: "abc", Auth: "NONE"}), func(f *functions.Function) {})
	d.function("g", withURL(functions.URL{ID: "def", Auth: "NONE", Mode: streamed}))
	for _, minor := range []int{0, 1} {
		for id, path := range map[string]string{"": "/2015-03-31/functions/f/invocations", "abc": "/", "def": "/"} {
			resp := d.raw(t, id, path, minor)
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			bounded := resp.ContentLength >= 0 || len(resp.TransferEncoding) > 0
			refused := id == "def" && minor == 0
			if err != nil || !bounded || !refused && (resp.StatusCode != http.StatusOK || len(body) < 10_000) || refused && resp.StatusCode != http.StatusHTTPVersionNotSupported {
				t.Errorf("HTTP/1.%d %q: %s, %d bytes, %v", minor, id, resp.Status, len(body), err)
			}
		}
	}
}

// raw sends a request in a version of HTTP, and gives the answer as it came.
func (d *door) raw(t *testing.T, id, path string, minor int) *http.Response {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(3 * time.Minute))
	req, err := http.NewRequest("POST", d.url+path, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	if id != "" {
		req.Host = id + ".lambda-url." + testRegion + ".localhost"
	}
	d.sign(req, "{}", d.key)
	var b bytes.Buffer
	if err := req.Write(&b); err != nil {
		t.Fatal(err)
	}
	head := strings.Replace(b.String(), " HTTP/1.1\r\n", fmt.Sprintf(" HTTP/1.%d\r\n", minor), 1)
	if _, err := io.WriteString(c, head); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}
