package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"thaw/chunk"
)

const (
	magic       = "thaw-L1\n"
	version     = 2
	requestSize = 48
	headerSize  = 12
	// maxText holds a cause with a path or a URL in it, in bytes.
	maxText = 512
)

type op uint8

const (
	opGet    op = 1
	opTouch  op = 2
	opCancel op = 3
	// opPrefetch is answered without the bytes.
	opPrefetch op = 4
	opStats    op = 5
)

// maxNames is the most names in one touch: 16 KiB.
const maxNames = 512

type status uint8

const (
	statusFound status = iota
	statusNotFound
	statusCorrupt
	statusUnavailable
	statusInternal
)

// errInternal says that the fetcher is at fault; asking again would not help.
var errInternal = errors.New("fetcher failed")

// err gives the sentinel that a status stands for.
func (s status) err() error {
	switch s {
	case statusFound:
		return nil
	case statusNotFound:
		return chunk.ErrNotFound
	case statusCorrupt:
		return chunk.ErrCorrupt
	case statusUnavailable:
		return ErrUnavailable
	}
	return errInternal
}

// errProtocol says that the peer sent what the package comment does not allow.
var errProtocol = errors.New("protocol error")

// The origin's rule for the name of a root.
const (
	rootLetters = "abcdefghijklmnopqrstuvwxyz0123456789"
	maxRootSize = 32 // bytes
)

func checkRoot(root string) error {
	if root == "" || len(root) > maxRootSize || !strings.Contains(rootLetters, root[:1]) || strings.Trim(root, rootLetters+"-") != "" {
		return fmt.Errorf("%w: %.40q is not the name of a root", errProtocol, root)
	}
	return nil
}

// hello is the first frame to the fetcher.
type hello struct {
	root  string // empty: there will be no gets
	start uint64 // when the start that reads began, µs since 1970; 0 for unknown
}

func (h hello) append(b []byte) []byte {
	b = append(append(b, magic...), version, byte(len(h.root)))
	return append(binary.BigEndian.AppendUint64(b, h.start), h.root...)
}

func readHello(r io.Reader) (hello, error) {
	var front [len(magic) + 2 + 8]byte
	if _, err := io.ReadFull(r, front[:len(magic)+2]); err != nil {
		return hello{}, err
	}
	if string(front[:len(magic)]) != magic || front[len(magic)] != version {
		return hello{}, fmt.Errorf("%w: hello %q is not of version %d: agent and fetcher must be of one build", errProtocol, front[:len(magic)+1], version)
	}
	if _, err := io.ReadFull(r, front[len(magic)+2:]); err != nil {
		return hello{}, err
	}
	root := make([]byte, front[len(magic)+1])
	if _, err := io.ReadFull(r, root); err != nil {
		return hello{}, err
	}
	h := hello{string(root), binary.BigEndian.Uint64(front[len(magic)+2:])}
	if h.root == "" {
		return h, nil
	}
	return h, checkRoot(h.root)
}

// request is one frame to the fetcher.
type request struct {
	id   uint32
	op   op
	wait time.Duration // whole milliseconds, rounded up
	size uint32
	name chunk.Name
}

func (r request) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, r.id)
	b = append(b, byte(r.op), 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32((r.wait+time.Millisecond-1)/time.Millisecond))
	b = binary.BigEndian.AppendUint32(b, r.size)
	return append(b, r.name[:]...)
}

// appendTouch appends the frame that says that chunks are in use.
func appendTouch(b []byte, names []chunk.Name) []byte {
	b = request{op: opTouch, size: uint32(len(names) * len(chunk.Name{}))}.append(b)
	for i := range names {
		b = append(b, names[i][:]...)
	}
	return b
}

func parseRequest(b *[requestSize]byte) (request, error) {
	r := request{
		id:   binary.BigEndian.Uint32(b[0:]),
		op:   op(b[4]),
		wait: time.Duration(binary.BigEndian.Uint32(b[8:])) * time.Millisecond,
		size: binary.BigEndian.Uint32(b[12:]),
		name: chunk.Name(b[16:]),
	}
	ok := b[5]|b[6]|b[7] == 0
	switch r.op {
	case opGet, opPrefetch:
		ok = ok && r.id != 0 && r.wait > 0 && r.size > 0 && r.size <= chunk.MaxSize
	case opTouch:
		n := uint32(len(r.name))
		ok = ok && r.id == 0 && r.wait == 0 && r.size > 0 && r.size%n == 0 && r.size <= maxNames*n && r.name == chunk.Name{}
	case opCancel, opStats:
		ok = ok && r.id != 0 && r.wait == 0 && r.size == 0 && r.name == chunk.Name{}
	default:
		ok = false
	}
	if !ok {
		return request{}, fmt.Errorf("%w: request %x", errProtocol, b[:16])
	}
	return r, nil
}

func readRequest(r io.Reader) (request, error) {
	var b [requestSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return request{}, err
	}
	return parseRequest(&b)
}

// header is the front of a frame to the client.
type header struct {
	id     uint32
	status status
	tier   Tier
	length uint32
}

func (h header) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, h.id)
	b = append(b, byte(h.status), byte(h.tier), 0, 0)
	return binary.BigEndian.AppendUint32(b, h.length)
}

func parseHeader(b *[headerSize]byte) (header, error) {
	h := header{
		id:     binary.BigEndian.Uint32(b[0:]),
		status: status(b[4]),
		tier:   Tier(b[5]),
		length: binary.BigEndian.Uint32(b[8:]),
	}
	ok := b[6]|b[7] == 0 && h.tier <= Origin && h.status <= statusInternal
	if h.status == statusFound {
		ok = ok && h.id != 0 && h.length <= chunk.MaxSize
	} else {
		ok = ok && h.length <= maxText
	}
	if !ok {
		return header{}, fmt.Errorf("%w: answer %x", errProtocol, b[:])
	}
	return h, nil
}

func readHeader(r io.Reader) (header, error) {
	var b [headerSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return header{}, err
	}
	return parseHeader(&b)
}

// oneLine makes a text that a frame and a log line can hold.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxText {
		cut := maxText
		for !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut]
	}
	return s
}
