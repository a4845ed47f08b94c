package node

import (
	"bytes"
	"encoding/hex"
	"time"

	"thaw/zone"
)

// request is a request for a stripe.
type request struct {
	method byte // G, H or P: GET, HEAD, PUT
	id     zone.StripeID
	ask    ask
	match  string // the ETag that a PUT replaces
	length int    // bytes of a PUT's body
	close  bool   // the last one of its connection
}

// parsed says what to do with the bytes that a connection has brought.
type parsed int

const (
	ours    parsed = iota // a request that Serve answers by itself
	partial               // more bytes are needed to tell
	foreign               // anything else: net/http's
)

// parseRequest reads the head of a request, of size bytes. It knows the usual
// forms of requests for a stripe only: whatever is unusual, wrong, or for
// another path is foreign, so that one parser decides what HTTP allows.
func parseRequest(b []byte, r *request) (p parsed, size int) {
	*r = request{length: -1}
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		if startsLikeOurs(b) {
			return partial, 0
		}
		return foreign, 0
	}
	size = end + 4
	line, rest, _ := bytes.Cut(b[:end+2], []byte("\r\n"))
	if !r.parseLine(line) {
		return foreign, 0
	}
	hosts := 0
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || !plain(line) || !r.parseField(name, bytes.Trim(value, " "), &hosts) {
			return foreign, 0
		}
	}
	if hosts != 1 || r.method == 'P' && (r.length < 0 || r.length > zone.MaxStripe) || r.method != 'P' && r.length > 0 {
		return foreign, 0
	}
	return ours, size
}

// startsLikeOurs tells whether more bytes could make b a request for a stripe.
func startsLikeOurs(b []byte) bool {
	for _, start := range []string{"GET " + zone.StripesPath, "HEAD " + zone.StripesPath, "PUT " + zone.StripesPath} {
		n := min(len(b), len(start))
		if string(b[:n]) == start[:n] {
			return true
		}
	}
	return false
}

// parseLine reads the request line.
func (r *request) parseLine(b []byte) bool {
	method, b, _ := bytes.Cut(b, []byte(" "))
	switch string(method) {
	case "GET", "HEAD", "PUT":
		r.method = method[0]
	default:
		return false
	}
	b, ok := bytes.CutSuffix(b, []byte(" HTTP/1.1"))
	if !ok {
		return false
	}
	path, query, asks := bytes.Cut(b, []byte("?"))
	if asks {
		ms, ok := bytes.CutPrefix(query, []byte("wait="))
		n, isNumber := number(ms, 4)
		r.ask.wait = time.Duration(n) * time.Millisecond
		if !ok || !isNumber || r.ask.wait > zone.MaxWait || r.method != 'G' {
			return false
		}
	}
	return r.parsePath(path)
}

// parsePath is zone.ParsePath without garbage.
func (r *request) parsePath(b []byte) bool {
	const digits = 2 * len(r.id.Name)
	b, ok := bytes.CutPrefix(b, []byte(zone.StripesPath))
	if !ok || len(b) < digits+1 || b[digits] != '/' {
		return false
	}
	for _, c := range b[:digits] {
		if 'A' <= c && c <= 'F' {
			return false
		}
	}
	if _, err := hex.Decode(r.id.Name[:], b[:digits]); err != nil {
		return false
	}
	b = b[digits+1:]
	for i, field := range []*uint8{&r.id.K, &r.id.N, &r.id.Index} {
		part, rest, more := bytes.Cut(b, []byte("-"))
		n, ok := number(part, 2)
		if !ok || more != (i < 2) || len(part) > 1 && part[0] == '0' {
			return false
		}
		*field, b = uint8(n), rest
	}
	return r.id.Check() == nil
}

// number reads at most so many decimal digits.
func number(b []byte, most int) (n int, ok bool) {
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
		if len(b) > most {
			return 0, false
		}
	}
	return n, len(b) > 0
}

// plain tells whether a line has neither control characters nor the beginning
// of a folded one.
func plain(line []byte) bool {
	for _, c := range line {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return line[0] != ' '
}

// parseField reads a field of the head. False: it is not for this parser.
func (r *request) parseField(name, value []byte, hosts *int) bool {
	is := func(s string) bool { return len(name) == len(s) && bytes.EqualFold(name, []byte(s)) }
	switch {
	case len(name) == 0 || bytes.ContainsAny(name, " \""):
		return false
	case is("Host"):
		*hosts++
	case is("Content-Length"):
		n, ok := number(value, 8)
		if !ok || r.length >= 0 {
			return false
		}
		r.length = n
	case is(zone.LeaseHeader):
		if len(value) == 0 || len(value) > zone.MaxToken || r.ask.token != "" {
			return false
		}
		if r.method == 'G' {
			r.ask.token = string(value)
		}
	case is("If-Match"):
		if r.method != 'P' || r.match != "" {
			return false
		}
		tag, err := precondition(string(value), "")
		r.match = tag
		return err == nil && tag != ""
	case is("If-None-Match"):
		return r.method == 'P' && r.match == "" && string(value) == "*"
	case is("Connection"):
		switch string(value) {
		case "close":
			r.close = true
		case "keep-alive":
		default:
			return false
		}
	case is("Transfer-Encoding"), is("Expect"), is("Upgrade"), is("Trailer"), is("TE"):
		return false
	}
	return true
}
