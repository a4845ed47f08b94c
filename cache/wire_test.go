package cache

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"thaw/chunk"
)

// TestWire pins the bytes of the package comment.
func TestWire(t *testing.T) {
	name := chunk.Name(bytes.Repeat([]byte{0xab}, 32))
	for want, got := range map[string][]byte{
		"746861772d4c310a" + "02" + "02" + "0005f5e100000102" + "7231":                                               hello{"r1", 0x5f5e100000102}.append(nil),
		"00000007" + "01" + "000000" + "000003e9" + "00080000" + strings.Repeat("ab", 32):                            request{7, opGet, 1000*time.Millisecond + 1, 512 << 10, name}.append(nil),
		"00000000" + "02" + "000000" + "00000000" + "00000040" + strings.Repeat("00", 32) + strings.Repeat("ab", 64): appendTouch(nil, []chunk.Name{name, name}),
		"00000007" + "05" + "000000" + "00000000" + "00000000" + strings.Repeat("00", 32):                            request{id: 7, op: opStats}.append(nil),
		"00000007" + "04" + "000000" + "000003e8" + "00080000" + strings.Repeat("ab", 32):                            request{7, opPrefetch, time.Second, 512 << 10, name}.append(nil),
		"00000007" + "03" + "000000" + "00000000" + "00000000" + strings.Repeat("00", 32):                            request{id: 7, op: opCancel}.append(nil),
		"00000007" + "00" + "03" + "0000" + "00080000":                                                               header{7, statusFound, Origin, 512 << 10}.append(nil),
	} {
		if hex.EncodeToString(got) != want {
			t.Errorf("wrote %x, want %s", got, want)
		}
	}
}

func TestStatuses(t *testing.T) {
	for s, want := range map[status]error{
		statusNotFound: chunk.ErrNotFound, statusCorrupt: chunk.ErrCorrupt, statusUnavailable: ErrUnavailable, statusInternal: errInternal,
	} {
		if err := error(&failure{s, Zone, "why"}); !errors.Is(err, want) || err.Error() != "zone: why" {
			t.Errorf("status %d is %v", s, err)
		}
	}
	if statusFound.err() != nil {
		t.Error("found is an error")
	}
}

func TestOneLine(t *testing.T) {
	long := strings.Repeat("é", maxText)
	for in, want := range map[string]string{"a\nb\x00\x7f": "a b  ", "\xff": "?", long: long[:maxText], "x" + long: ("x" + long)[:maxText-1]} {
		if got := oneLine(in); got != want {
			t.Errorf("oneLine(%.20q) = %.20q (%d bytes)", in, got, len(got))
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(request{1, opGet, time.Second, 4096, chunk.Name{1}}.append(nil))
	f.Add(appendTouch(nil, make([]chunk.Name, 1)))
	f.Add(bytes.Repeat([]byte{0xff}, requestSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := readRequest(bytes.NewReader(b))
		if err == nil && !bytes.Equal(r.append(nil), b[:requestSize]) {
			t.Errorf("%x is read as %+v", b, r)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(hello{"r1", 1}.append(nil))
	f.Add(hello{}.append(nil))
	f.Add([]byte("thaw-L1\n\x01\x02r1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHello(bytes.NewReader(b))
		if err == nil && (!bytes.HasPrefix(b, h.append(nil)) || h.root != "" && checkRoot(h.root) != nil) {
			t.Errorf("%x is read as %+v", b, h)
		}
	})
}

// FuzzAnswers shows a client any bytes in place of answers: it must not take
// more than a frame may hold, nor hand out a chunk of another length.
func FuzzAnswers(f *testing.F) {
	found := header{1, statusFound, Origin, 3}
	f.Add(append(found.append(nil), "abc"...))
	f.Add(append(header{1, statusCorrupt, Zone, 3}.append(nil), "why"...))
	f.Add(append(header{0, statusInternal, 0, 3}.append(nil), "bad"...))
	f.Add(append(header{9, statusFound, Cache, 1}.append(nil), append([]byte("x"), found.append(nil)...)...))
	f.Add(header{1, statusFound, Cache, 1 << 31}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := readHeader(bytes.NewReader(b)); err == nil && !bytes.Equal(h.append(nil), b[:headerSize]) {
			t.Errorf("%x is read as %+v", b[:headerSize], h)
		}
		p := &pending{size: 3, answer: make(chan answer, 1)}
		l := &link{pending: map[uint32]*pending{1: p}}
		in := bufio.NewReader(bytes.NewReader(b))
		for l.readAnswer(in) == nil {
		}
		select {
		case a := <-p.answer:
			if (a.failed == nil) != (len(a.data) == 3 && a.tier > 0) {
				t.Errorf("%x gave %+v", b, a)
			}
		default:
		}
	})
}

// FuzzPeer shows a fetcher any bytes in place of a client: it must end the
// connection at the first wrong one, and never stop.
func FuzzPeer(f *testing.F) {
	c := sample(1, small)
	front := hello{"r1", 1}.append(nil)
	get := request{1, opGet, time.Second, small, c.Name}.append(front)
	f.Add(front)
	f.Add(get)
	f.Add(request{2, opPrefetch, time.Second, small, c.Name}.append(get))
	f.Add(request{2, opGet, time.Millisecond, 1, chunk.Name{}}.append(get))
	f.Add(appendTouch(get, []chunk.Name{c.Name, {}}))
	f.Add(request{id: 3, op: opStats}.append(hello{}.append(nil)))
	f.Add(request{1, opGet, time.Second, small, c.Name}.append(hello{}.append(nil)))
	f.Add(request{id: 1, op: opCancel}.append(get))
	f.Add(append(get, make([]byte, requestSize)...))
	folder := newFolder(f, 1<<20)
	var origin fakeOrigin
	origin.put(f, 2, small)
	f.Fuzz(func(t *testing.T, b []byte) {
		fetcher := NewFetcher(FetcherOptions{Folder: folder, Upstreams: upstream(&origin)})
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() { fetcher.serveConn(context.Background(), theirs); close(done) }()
		go func() { _, _ = io.Copy(io.Discard, ours) }()
		_, _ = ours.Write(b)
		_ = ours.Close()
		<-done
		fetcher.flights.close()
	})
}

// TestRefusals: what a fetcher does not understand it says so to, in a line.
func TestRefusals(t *testing.T) {
	r := newRig(t, 0, 1<<20)
	for what, b := range map[string][]byte{
		"hello":   []byte("GET / HTTP/1.1\r\n\r\n"),
		"root":    hello{root: "../.."}.append(nil),
		"request": append(hello{root: "r1"}.append(nil), make([]byte, requestSize)...),
	} {
		conn, err := dialer(r.fetcher.socket)(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
		h, err := readHeader(conn)
		text, _ := io.ReadAll(conn)
		_ = conn.Close()
		if err != nil || h.id != 0 || h.status != statusInternal || len(text) != int(h.length) || !strings.Contains(string(text), errProtocol.Error()) {
			t.Errorf("%s: answer %+v %q, %v", what, h, text, err)
		}
	}
	if _, err := NewClient(ClientOptions{Root: "../x"}); err == nil {
		t.Error("a client of a bad root was made")
	}
}

func TestCheckRoot(t *testing.T) {
	for root, ok := range map[string]bool{
		"r1": true, "0": true, "a-b-": true, strings.Repeat("a", 32): true,
		"": false, "-a": false, "A": false, "a/b": false, "a/../b": false, "a.": false, "a\x00": false, strings.Repeat("a", 33): false,
	} {
		if err := checkRoot(root); (err == nil) != ok {
			t.Errorf("checkRoot(%q) = %v", root, err)
		}
	}
}
