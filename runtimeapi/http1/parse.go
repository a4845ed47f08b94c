package http1

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// badRequest is what a client is told of a request that cannot be read.
type badRequest struct {
	status int
	text   string
}

func (b *badRequest) Error() string { return b.text }

func bad(format string, args ...any) error {
	return &badRequest{400, fmt.Sprintf("bad request: "+format, args...)}
}

// errTooLarge is that of a head or trailer over its bound.
var errTooLarge = error(&badRequest{431, "bad request: its header is too large"})

// request reads a request's head.
func (c *conn) request() (*Request, *body, error) {
	lines := lines{in: c.in, left: maxHead}
	first, err := lines.next()
	if err == nil && first == "" { // an empty line after the last body, as some clients send it
		first, err = lines.next()
	}
	if err != nil {
		return nil, nil, err
	}
	r := &Request{conn: c}
	minor, err := r.parseLine(first)
	if err != nil {
		return nil, nil, err
	}
	if r.Header, err = lines.fields(); err != nil {
		return nil, nil, err
	}
	b := &body{conn: c, r: r}
	b.keep = minor > 0 && !hasToken(r.Header["connection"], "close")
	if err := b.frame(minor); err != nil {
		return nil, nil, err
	}
	b.expects = !b.ended && minor > 0 && strings.EqualFold(r.Header["expect"], "100-continue")
	r.Body = b
	return r, b, nil
}

// parseLine reads "GET /path?query HTTP/1.1" and gives the minor version.
func (r *Request) parseLine(line string) (minor int, err error) {
	method, rest, _ := strings.Cut(line, " ")
	target, version, ok := strings.Cut(rest, " ")
	if !ok || !isToken(method) {
		return 0, bad("its first line is not one of HTTP")
	}
	switch version {
	case "HTTP/1.1":
		minor = 1
	case "HTTP/1.0":
	default:
		return 0, &badRequest{505, "bad request: its version is not HTTP/1.1"}
	}
	if !strings.HasPrefix(target, "/") || strings.ContainsFunc(target, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return 0, bad("its target is not a path")
	}
	r.Method = method
	r.Path, _, _ = strings.Cut(target, "?")
	return minor, nil
}

// lines reads the lines of a head or trailer.
type lines struct {
	in   *bufio.Reader
	left int // bytes
}

// next gives a line without its end. The end of the connection is io.EOF only
// before the first byte.
func (l *lines) next() (string, error) {
	var long []byte
	for {
		part, err := l.in.ReadSlice('\n')
		if l.left -= len(part); l.left < 0 {
			return "", errTooLarge
		}
		if err == bufio.ErrBufferFull {
			long = append(long, part...)
			continue
		}
		if err != nil {
			if err == io.EOF && len(long)+len(part) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		}
		line := strings.TrimSuffix(string(append(long, part...)), "\n")
		return strings.TrimSuffix(line, "\r"), nil
	}
}

// fields reads header lines up to the empty one.
func (l *lines) fields() (Header, error) {
	h := Header{}
	for range maxFields + 1 {
		line, err := l.next()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil || line == "" {
			return h, err
		}
		name, value, ok := strings.Cut(line, ":")
		value = strings.Trim(value, " \t")
		if !ok || !isToken(name) || !isValue(value) {
			return nil, bad("a header line is none")
		}
		name = strings.ToLower(name)
		if was, twice := h[name]; twice {
			if name == "content-length" || name == "transfer-encoding" || name == "host" {
				return nil, bad("it has %s twice", name)
			}
			value = was + ", " + value
		}
		h[name] = value
	}
	return nil, errTooLarge
}

// isToken tells whether s is a name: of a method or header.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	})
}

// hasToken tells whether a list of words, separated by commas, has one.
func hasToken(list, word string) bool {
	for item := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.Trim(item, " \t"), word) {
			return true
		}
	}
	return false
}

// body is a request's body on its connection.
type body struct {
	conn *conn
	r    *Request

	left    int64 // bytes of the body, or of the chunk
	chunked bool
	begun   bool // a chunk has been read
	expects bool // the client waits for 100 before it sends anything
	silent  bool // the answer is sent already: no 100
	keep    bool // the client wants to keep the connection
	ended   bool // all has been read
	failed  bool
}

// frame finds out how the body ends.
func (b *body) frame(minor int) error {
	length, hasLength := b.r.Header["content-length"]
	encoding, hasEncoding := b.r.Header["transfer-encoding"]
	switch {
	case hasEncoding && hasLength:
		return bad("it has both a length and a transfer encoding")
	case hasEncoding && minor == 0:
		return bad("HTTP/1.0 has no transfer encodings")
	case hasEncoding && !strings.EqualFold(encoding, "chunked"):
		return &badRequest{501, "bad request: its transfer encoding is not chunked"}
	case hasEncoding:
		b.chunked, b.r.Length = true, -1
	case hasLength:
		n, err := strconv.ParseUint(length, 10, 63)
		if err != nil || length[0] == '+' {
			return bad("its length is no number")
		}
		b.left, b.r.Length = int64(n), int64(n)
	}
	b.ended = !b.chunked && b.left == 0
	return nil
}

// Read gives the body's bytes.
func (b *body) Read(p []byte) (int, error) {
	if b.failed {
		return 0, io.ErrUnexpectedEOF
	}
	if b.expects && !b.silent {
		b.expects = false
		_, _ = b.conn.out.WriteString("HTTP/1.1 100 Continue\r\n\r\n")
		_ = b.conn.out.Flush() // an error comes again with the answer
	}
	if b.chunked && b.left == 0 && !b.ended {
		if err := b.chunk(); err != nil {
			return 0, b.fail(err)
		}
	}
	if b.ended {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := b.conn.in.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if !b.chunked && b.left == 0 {
		b.ended = true
	}
	if err != nil && !b.ended {
		return n, b.fail(err)
	}
	return n, nil
}

func (b *body) fail(err error) error {
	b.failed = true
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("reading a request's body: %w", err)
}

// chunk reads the next chunk's size, or the trailers after the last.
func (b *body) chunk() error {
	lines := lines{in: b.conn.in, left: maxTrailer}
	if b.begun {
		if end, err := lines.next(); err != nil || end != "" {
			return errors.Join(err, bad("a chunk is longer than it says"))
		}
	}
	b.begun = true
	line, err := lines.next()
	if err != nil {
		return err
	}
	size, _, _ := strings.Cut(line, ";")
	size = strings.TrimRight(size, " \t")
	n, err := strconv.ParseUint(size, 16, 62)
	if err != nil || strings.ContainsAny(size, "+-_xX") {
		return bad("a chunk's size is no number")
	}
	if b.left = int64(n); n > 0 {
		return nil
	}
	if b.r.Trailer, err = lines.fields(); err != nil {
		return err
	}
	b.ended = true
	return nil
}
