package http1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is far more than anything here takes.
const patience = 3 * time.Minute

// serving runs a server until the test ends, and gives its address.
func serving(t *testing.T, handler func(*Request) Answer) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	s := &Server{Handler: handler}
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		_ = l.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// echo answers with what it got.
func echo(r *Request) Answer {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return Answer{Status: 400, Body: []byte(err.Error())}
	}
	return Answer{200, []Field{{"X-Path", r.Path}, {"X-Length", fmt.Sprint(r.Length)}, {"X-Trailer", r.Trailer["x-end"]}, {"X-Two", r.Header["x-two"]}}, body}
}

// talk sends raw bytes and gives all that comes back until the server ends the
// connection.
func talk(t *testing.T, address, raw string) string {
	t.Helper()
	c, err := net.Dial("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(got)
}

// The real client of Go, over one connection.
func TestClient(t *testing.T) {
	var mu sync.Mutex
	conns := map[string]bool{}
	address := serving(t, func(r *Request) Answer {
		mu.Lock()
		defer mu.Unlock()
		conns[r.conn.raw.RemoteAddr().String()] = true
		return echo(r)
	})
	for i, body := range []string{"", "x", strings.Repeat("0123456789", 1<<19)} {
		for _, chunked := range []bool{false, true} {
			var from io.Reader = strings.NewReader(body)
			if chunked {
				from = struct{ io.Reader }{from}
			}
			req, _ := http.NewRequest("POST", "http://"+address+"/a/%24b?c=d", from)
			req.Header["X-Two"] = []string{"1", "2"}
			if chunked && body != "" {
				req.Trailer = http.Header{"X-End": {"ended"}}
			}
			if i == 2 {
				req.Header.Set("Expect", "100-continue")
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || resp.StatusCode != 200 || string(got) != body || resp.Header.Get("X-Path") != "/a/%24b" || resp.Header.Get("X-Two") != "1, 2" {
				t.Errorf("%d bytes: %v, %v, %d bytes back, %v", len(body), resp.Status, err, len(got), resp.Header)
			}
			if resp.Header.Get("X-Trailer") != req.Trailer.Get("X-End") {
				t.Errorf("trailer %q, want %q", resp.Header.Get("X-Trailer"), req.Trailer.Get("X-End"))
			}
		}
	}
	if len(conns) != 1 {
		t.Errorf("%d connections, want one kept alive", len(conns))
	}
}

func TestConversations(t *testing.T) {
	address := serving(t, echo)
	for name, c := range map[string]struct {
		raw  string
		want []string // in this order
	}{
		"two at once":      {"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n", []string{"200 OK", "/1", "200 OK", "/2"}},
		"bare line ends":   {"GET /1 HTTP/1.1\nHost: x\n\n", []string{"200 OK", "/1"}},
		"HTTP/1.0":         {"GET /1 HTTP/1.0\r\n\r\nGET /2 HTTP/1.0\r\n\r\n", []string{"200 OK", "/1", "Connection: close"}},
		"close":            {"GET /1 HTTP/1.1\r\nConnection: a, Close\r\n\r\nGET /2 HTTP/1.1\r\n\r\n", []string{"/1", "Connection: close"}},
		"empty line first": {"\r\nGET /1 HTTP/1.1\r\n\r\n", []string{"200 OK"}},
		"chunks": {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-End: z\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",
			[]string{"X-Length: -1", "X-Trailer: z", "\r\n\r\nabc0123456789", "/2"}},
		"100 only once wanted": {"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab", []string{"100 Continue", "200 OK", "\r\n\r\nab"}},
		"cut":                  {"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab", []string{"400 Bad Request", "unexpected EOF"}},
		"cut chunk":            {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", []string{"400 Bad Request", "unexpected EOF"}},
		"cut trailer":          {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n", []string{"400 Bad Request", "unexpected EOF"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := talk(t, address, c.raw)
			rest := got
			for _, want := range c.want {
				i := strings.Index(rest, want)
				if i < 0 {
					t.Fatalf("%q has no %q where it should", got, want)
				}
				rest = rest[i+len(want):]
			}
			if n, want := strings.Count(got, "HTTP/1.1 2"), strings.Count(strings.Join(c.want, " "), "200 OK"); want > 0 && n != want {
				t.Errorf("%d answers, want %d: %q", n, want, got)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	address := serving(t, echo)
	for name, c := range map[string]struct {
		raw  string
		want string
	}{
		"no HTTP":              {"hello\r\n\r\n", "400"},
		"no method":            {" / HTTP/1.1\r\n\r\n", "400"},
		"a method of signs":    {"G(T / HTTP/1.1\r\n\r\n", "400"},
		"HTTP/2":               {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"},
		"no path":              {"GET x HTTP/1.1\r\n\r\n", "400"},
		"a space in it":        {"GET /a b HTTP/1.1\r\n\r\n", "505"},
		"control in the path":  {"GET /a\x01 HTTP/1.1\r\n\r\n", "400"},
		"no colon":             {"GET / HTTP/1.1\r\nHost\r\n\r\n", "400"},
		"space before colon":   {"GET / HTTP/1.1\r\nHost : x\r\n\r\n", "400"},
		"folded":               {"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", "400"},
		"control in a value":   {"GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", "400"},
		"two lengths":          {"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", "400"},
		"a length and chunks":  {"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
		"chunks in HTTP/1.0":   {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
		"another encoding":     {"GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "501"},
		"a negative length":    {"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "400"},
		"a plus":               {"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx", "400"},
		"a long length":        {"GET / HTTP/1.1\r\nContent-Length: 9223372036854775808\r\n\r\n", "400"},
		"a long head":          {"GET / HTTP/1.1\r\nA: " + strings.Repeat("x", maxHead) + "\r\n\r\n", "431"},
		"a long first line":    {"GET /" + strings.Repeat("x", maxHead) + " HTTP/1.1\r\n\r\n", "431"},
		"many fields":          {"GET / HTTP/1.1\r\n" + strings.Repeat("A: b\r\n", maxFields+1) + "\r\n", "431"},
		"a chunk of no size":   {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "400"},
		"a chunk of minus one": {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", "400"},
		"a huge chunk":         {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", "400"},
		"a longer chunk":       {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", "400"},
		"a long trailer":       {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: " + strings.Repeat("x", maxTrailer) + "\r\n\r\n", "400"},
	} {
		t.Run(name, func(t *testing.T) {
			got := talk(t, address, c.raw+"GET /more HTTP/1.1\r\n\r\n")
			if !strings.HasPrefix(got, "HTTP/1.1 "+c.want+" ") || strings.Contains(got, "/more") {
				t.Errorf("%.300q, want %s and the end", got, c.want)
			}
		})
	}
}

// A body that the handler does not want does not hide the answer, and the
// connection goes on.
func TestUnreadBody(t *testing.T) {
	address := serving(t, func(r *Request) Answer { return Answer{Status: 403, Body: []byte("no")} })
	body := strings.Repeat("x", 8<<20)
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	for range 3 {
		resp, err := client.Post("http://"+address+"/", "text/plain", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != 403 || string(got) != "no" {
			t.Errorf("%v, %q, %v", resp.Status, got, err)
		}
	}
	// Who waits for 100 gets the answer instead, and no 100.
	got := talk(t, address, "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 403") || !strings.Contains(got, "Connection: close") {
		t.Errorf("%q", got)
	}
}

// A value that a client chose cannot end a header.
func TestNoFieldsSmuggled(t *testing.T) {
	address := serving(t, func(*Request) Answer {
		return Answer{200, []Field{{"A", "b\r\nSet-Cookie: c"}, {"D", "e\x00"}, {"F", "g"}}, nil}
	})
	got := talk(t, address, "GET / HTTP/1.1\r\n\r\n")
	if got != "HTTP/1.1 200 OK\r\nF: g\r\nContent-Length: 0\r\n\r\n" {
		t.Errorf("%q", got)
	}
}

func TestGone(t *testing.T) {
	entered, gone := make(chan string), make(chan string)
	release := make(chan struct{})
	address := serving(t, func(r *Request) Answer {
		entered <- r.Path
		select {
		case <-r.Gone():
			gone <- r.Path
		case <-release:
		}
		return Answer{Status: 200, Body: []byte(r.Path)}
	})
	dial := func(raw string) net.Conn {
		c, err := net.Dial("tcp4", address)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(c, raw)
		return c
	}
	for _, raw := range []string{"GET /a HTTP/1.1\r\n\r\n", "POST /a HTTP/1.1\r\nContent-Length: 0\r\n\r\n"} {
		c := dial(raw)
		if path := <-entered; path != "/a" {
			t.Error(path)
		}
		_ = c.Close()
		if path := <-gone; path != "/a" {
			t.Error(path)
		}
	}
	// Who stays is answered, and may send more on the same connection.
	c := dial("GET /b HTTP/1.1\r\n\r\n")
	<-entered
	close(release)
	in := bufio.NewReader(c)
	for _, want := range []string{"/b", "/c", "/d"} {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(resp.Body); string(got) != want {
			t.Errorf("%q, want %q", got, want)
		}
		if want != "/d" {
			_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\n\r\n", map[string]string{"/b": "/c", "/c": "/d"}[want])
			<-entered
		}
	}
	_ = c.Close()
}

// The server's end ends who waits.
func TestServerEnds(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	entered, done := make(chan bool), make(chan error, 1)
	s := &Server{Handler: func(r *Request) Answer { entered <- true; <-r.Gone(); return Answer{Status: 200} }}
	go func() { done <- s.Serve(l) }()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
	<-entered
	_ = l.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// More connections than the server has are closed, and others go on.
func TestManyConnections(t *testing.T) {
	address := serving(t, echo)
	var all []net.Conn
	closed := 0
	for range MaxConns + 10 {
		c, err := net.Dial("tcp4", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(c, "GET /1 HTTP/1.1\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			closed++
			continue
		}
		all = append(all, c)
	}
	if closed != 10 || len(all) != MaxConns {
		t.Errorf("%d closed, %d go on", closed, len(all))
	}
}

// What this server reads, net/http reads alike.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /2018-06-01/runtime/invocation/x/response?y HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: E\r\n\r\n3\r\nabc\r\n0\r\nE: f\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n00\r\n\r\nrest",
		"GET / HTTP/1.0\nA: b\nA: c\n\n",
		"GET / HTTP/1.1\r\nA : b\r\n c\r\n\r\n",
		"GET /\x80 HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		c := &conn{raw: nopConn{}, in: bufio.NewReaderSize(bytes.NewReader(wire), bufferSize), out: bufio.NewWriter(io.Discard)}
		r, _, err := c.request()
		if err != nil {
			return
		}
		got, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		theirs, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(bytes.TrimPrefix(bytes.TrimPrefix(wire, []byte("\r")), []byte("\n")))))
		if err != nil {
			switch text := err.Error(); {
			case strings.Contains(text, "invalid URL escape"), strings.Contains(text, "Host"), strings.Contains(text, "invalid port"), strings.Contains(text, "invalid character"),
				strings.Contains(text, "trailer"):
				return // it looks at more than we use
			}
			t.Fatalf("only we read %q: %v", wire, err)
		}
		body, err := io.ReadAll(theirs.Body)
		if err != nil {
			t.Skip("stricter in chunks", err)
		}
		if r.Method != theirs.Method || r.Length != theirs.ContentLength || !bytes.Equal(got, body) {
			t.Fatalf("%q: %s %d %q, net/http has %s %d %q", wire, r.Method, r.Length, got, theirs.Method, theirs.ContentLength, body)
		}
		for name := range maps.Keys(r.Header) {
			switch name {
			case "host", "transfer-encoding", "trailer", "content-length", "connection", "pragma":
				continue // net/http moves them
			}
			if want := strings.Join(theirs.Header.Values(name), ", "); r.Header[name] != want {
				t.Fatalf("%q: %s is %q, net/http has %q", wire, name, r.Header[name], want)
			}
		}
	})
}

// nopConn is a connection that only takes deadlines.
type nopConn struct{ net.Conn }

func (nopConn) SetReadDeadline(time.Time) error { return nil }
