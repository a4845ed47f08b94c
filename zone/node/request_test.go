package node

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"thaw/zone"
)

func TestParseRequest(t *testing.T) {
	id, _ := usualStripe(1)
	for _, c := range []struct {
		text string
		want parsed
		then request
	}{
		{"GET PATH HTTP/1.1\r\nHost: x\r\n\r\n", ours, request{method: 'G', id: id, length: -1}},
		{"HEAD PATH HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", ours, request{method: 'H', id: id, length: -1, close: true}},
		{"GET PATH?wait=5000 HTTP/1.1\r\nHost: x\r\nThaw-Lease: w\r\nUser-Agent: y\r\nAccept-Encoding: gzip\r\n\r\n", ours,
			request{method: 'G', id: id, length: -1, ask: ask{token: "w", wait: 5 * time.Second}}},
		{"PUT PATH HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\nIf-None-Match: *\r\n\r\nabc", ours, request{method: 'P', id: id, length: 7}},
		{"PUT PATH HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\nIf-Match: \"01234567\"\r\n\r\n", ours, request{method: 'P', id: id, length: 7, match: `"01234567"`}},

		{"", partial, request{}},
		{"G", partial, request{}},
		{"PUT PATH HTTP/1.1\r\nHost: x\r\n", partial, request{}},
		{"GET PATH HTTP/1.1\r\nHost: x\r\n\r", partial, request{}},

		{"GET PATH HTTP/1.1\r\n\r\n", foreign, request{}},
		{"GET PATH HTTP/1.0\r\nHost: x\r\n\r\n", foreign, request{}},
		{"GET PATH HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", foreign, request{}},
		{"GET PATH HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", foreign, request{}},
		{"GET PATH HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", foreign, request{}},
		{"GET PATH HTTP/1.1\r\nHost: x\r\nA\r\n\r\n", foreign, request{}},
		{"GET PATH HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", foreign, request{}},
		{"GET PATH HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n", foreign, request{}},
		{"GET PATH HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", foreign, request{}},
		{"GET PATH HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", foreign, request{}},
		{"GET PATH HTTP/1.1\r\nHost: x\r\nThaw-Lease: " + strings.Repeat("w", 65) + "\r\n\r\n", foreign, request{}},
		{"GET PATH?wait=5001 HTTP/1.1\r\nHost: x\r\n\r\n", foreign, request{}},
		{"GET PATH?wait=1&wait=2 HTTP/1.1\r\nHost: x\r\n\r\n", foreign, request{}},
		{"GET PATH0 HTTP/1.1\r\nHost: x\r\n\r\n", foreign, request{}},
		{"PUT PATH HTTP/1.1\r\nHost: x\r\n\r\n", foreign, request{}},
		{"PUT PATH HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\nContent-Length: 7\r\n\r\n", foreign, request{}},
		{"PUT PATH HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", foreign, request{}},
		{"PUT PATH HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\nExpect: 100-continue\r\n\r\n", foreign, request{}},
		{"PUT PATH HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\nIf-Match: *\r\n\r\n", foreign, request{}},
		{"GET /status HTTP/1.1\r\nHost: x\r\n\r\n", foreign, request{}},
		{"GET /status", foreign, request{}},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", foreign, request{}},
		{"\x16\x03\x01", foreign, request{}},
	} {
		text := strings.Replace(c.text, "PATH", id.Path(), 1)
		var r request
		p, size := parseRequest([]byte(text), &r)
		if p != c.want || p == ours && (r != c.then || size != strings.Index(text, "\r\n\r\n")+4) {
			t.Errorf("%q: %d of %d bytes, %+v", c.text, p, size, r)
		}
	}
}

// FuzzParseRequest: what this parser takes, net/http takes for the same.
func FuzzParseRequest(f *testing.F) {
	id, _ := usualStripe(1)
	for _, seed := range []string{
		"GET %s HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET %s?wait=100 HTTP/1.1\r\nHost: x\r\nThaw-Lease: w\r\nConnection: close\r\n\r\n",
		"PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\nIf-Match: \"01234567\"\r\n\r\n1234567",
		"HEAD %s HTTP/1.1\r\nhost:x\r\nA:  b \r\n\r\nGET",
		"PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nIf-None-Match: *\r\nTransfer-Encoding: chunked\r\n\r\n",
	} {
		f.Add([]byte(fmt.Sprintf(seed, id.Path())))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r request
		p, size := parseRequest(b, &r)
		if p != ours {
			return
		}
		in := bufio.NewReader(bytes.NewReader(b))
		h, err := http.ReadRequest(in)
		if err != nil {
			t.Fatalf("net/http: %v", err)
		}
		if in.Buffered() != len(b)-size && h.ContentLength <= 0 {
			t.Fatalf("net/http leaves %d bytes, want %d", in.Buffered(), len(b)-size)
		}
		a, err := parseAsk(h.Header.Get(zone.LeaseHeader), h.URL.Query().Get("wait"))
		if h.Method != http.MethodGet {
			a = ask{}
		}
		id, perr := zone.ParsePath(h.URL.Path)
		if err != nil || perr != nil || h.Method[0] != r.method || id != r.id || a != r.ask || h.Close != r.close {
			t.Fatalf("net/http: %s %s %+v %v (%v, %v), here %+v", h.Method, id, a, h.Close, err, perr, r)
		}
		if r.method != 'P' {
			return
		}
		match, err := precondition(h.Header.Get("If-Match"), h.Header.Get("If-None-Match"))
		if err != nil || match != r.match || h.ContentLength != int64(r.length) {
			t.Fatalf("net/http: %q %d %v, here %+v", match, h.ContentLength, err, r)
		}
	})
}
