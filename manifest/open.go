package manifest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"

	"thaw/chunk"
)

// Sealed is a parsed manifest that is not opened yet. Its methods may run
// concurrently, except for Open and OpenWith, which run once and alone.
type Sealed struct {
	head     Manifest // without Chunks, Source, Config
	id       ID
	readable []byte
	sealed   []byte // nil once opened
	keyURL   string
	wrapped  []byte
}

// Parse splits data and checks, without a key, all that can be checked: every
// length, bound and order. It keeps data, which the caller must no longer
// change, and allocates next to nothing.
//
// What it gives is not authentic. Whoever wants a certain image compares ID;
// whoever has no id trusts nothing before Open. Bytes that cannot be a
// manifest give ErrCorrupt, one of a later format ErrVersion.
func Parse(data []byte) (*Sealed, error) {
	head, lengths, err := parseFixed(data)
	if err != nil {
		return nil, err
	}
	s := &Sealed{head: head, readable: data[:lengths.readable:lengths.readable]}
	rest := data[lengths.readable:]
	s.sealed = rest[:lengths.sealed:lengths.sealed]
	if err := s.checkEntries(); err != nil {
		return nil, err
	}
	if err := s.parseEnvelope(rest[lengths.sealed:]); err != nil {
		return nil, err
	}
	s.id = sha256.Sum256(s.readable)
	return s, nil
}

// lengths are those of the parts; they have been held against len(data).
type lengths struct{ readable, sealed int }

func parseFixed(data []byte) (Manifest, lengths, error) {
	var m Manifest
	var l lengths
	if len(data) < fixedSize || string(data[:8]) != magic {
		return m, l, corrupt("%d bytes do not start as a manifest does", len(data))
	}
	be := binary.BigEndian
	switch v := be.Uint16(data[8:]); {
	case v > version:
		return m, l, fmt.Errorf("%w: %d, and this thaw reads up to %d: update thaw", ErrVersion, v, version)
	case v < version:
		return m, l, corrupt("there is no version %d", v)
	}
	shift, tenant := data[11], uint64(be.Uint16(data[14:]))
	size, sealed, count := be.Uint64(data[16:]), be.Uint64(data[24:]), uint64(be.Uint32(data[32:]))
	readable := fixedSize + tenant + entrySize*count // < 2^38
	switch {
	case shift > 31 || size > 1<<63-1:
		return m, l, corrupt("chunk size 2^%d, size %d", shift, size)
	case readable > uint64(len(data)) || sealed > uint64(len(data))-readable:
		return m, l, corrupt("cut short: %d bytes do not hold its parts", len(data))
	}
	m = Manifest{
		Kind: Kind(data[10]), Tenant: string(data[fixedSize : fixedSize+tenant]), Layout: be.Uint16(data[12:]),
		Size: int64(size), ChunkSize: 1 << shift,
	}
	if err := m.check(); err != nil {
		return m, l, corrupt("%v", err)
	}
	least := keySize*count + 1 + tagSize
	if sealed < least || sealed > least+maxSource+uint64(m.Kind.maxConfig()) {
		return m, l, corrupt("sealed part of %d bytes for %d chunks", sealed, count)
	}
	return m, lengths{int(readable), int(sealed)}, nil
}

func (s *Sealed) checkEntries() error {
	before := int64(-1)
	for i := range s.count() {
		e := s.entry(i)
		if err := s.head.checkEntry(before, e); err != nil {
			return corrupt("%v", err)
		}
		before = int64(e.Index)
	}
	return nil
}

func (s *Sealed) count() int {
	return (len(s.readable) - fixedSize - len(s.head.Tenant)) / entrySize
}

// entry decodes one chunk, without its key.
func (s *Sealed) entry(i int) Entry {
	b := s.readable[fixedSize+len(s.head.Tenant)+i*entrySize:]
	return Entry{
		Index: binary.BigEndian.Uint32(b), Size: binary.BigEndian.Uint32(b[4:]),
		Name: chunk.Name(b[8:entrySize]),
	}
}

func (s *Sealed) parseEnvelope(b []byte) error {
	url, b, ok := cutField(b)
	if !ok {
		return corrupt("cut short in the key URL")
	}
	if err := checkURL(string(url)); err != nil {
		return corrupt("%v", err)
	}
	wrapped, b, ok := cutField(b)
	if !ok || len(wrapped) == 0 || len(b) > 0 {
		return corrupt("wrapped data key of %d bytes, %d bytes behind it", len(wrapped), len(b))
	}
	s.keyURL, s.wrapped = string(url), wrapped
	return nil
}

// cutField cuts a field with its 2-byte length off the front of b.
func cutField(b []byte) (field, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; n > len(b) {
		return nil, nil, false
	}
	return b[:n:n], b[n:], true
}

// ID is the hash of the readable part as parsed: the id of these bytes,
// whatever name they were found under.
func (s *Sealed) ID() ID { return s.id }

// KeyURL tells whose key wraps the data key. It is a hint until Open has
// succeeded: a URL from a store that others may write is not to be dialled
// unless it is one that the tenant is known to use.
func (s *Sealed) KeyURL() string { return s.keyURL }

// Readable gives the manifest without keys, source and config, in new memory.
func (s *Sealed) Readable() Manifest {
	m := s.head
	m.Chunks = make([]Entry, s.count())
	for i := range m.Chunks {
		m.Chunks[i] = s.entry(i)
	}
	return m
}

// Open is DataKey and OpenWith in one.
func (s *Sealed) Open(ctx context.Context, w Wrapper) (*Manifest, error) {
	key, err := s.DataKey(ctx, w)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	return s.OpenWith(key)
}

// DataKey unwraps the data key, 32 bytes, for a process that must not hold the
// wrapper. An envelope of another manifest, or one whose URL was changed,
// gives ErrCorrupt; w's own errors are passed on.
func (s *Sealed) DataKey(ctx context.Context, w Wrapper) ([]byte, error) {
	plain, err := w.Unwrap(ctx, s.wrapped)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: unwrap its data key: %w", s.id, err)
	}
	if len(plain) != wrappedSize {
		clear(plain)
		return nil, corrupt("%s: its envelope holds %d bytes, want %d", s.id, len(plain), wrappedSize)
	}
	key, want := plain[:keySize:keySize], sha256.Sum256([]byte(s.keyURL))
	if subtle.ConstantTimeCompare(plain[keySize:], append(s.id[:], want[:]...)) != 1 {
		clear(plain)
		return nil, corrupt("%s: its envelope is of another manifest or key URL", s.id)
	}
	return key, nil
}

// OpenWith decrypts the sealed part in place, which consumes s: the only copy
// of Config is then the one returned, and a second call, or Rewrap after it,
// is an error. Anything but the bytes that Seal made with dataKey gives
// ErrCorrupt.
func (s *Sealed) OpenWith(dataKey []byte) (*Manifest, error) {
	if s.sealed == nil {
		return nil, errOpened
	}
	if len(dataKey) != keySize {
		return nil, fmt.Errorf("manifest: data key of %d bytes, want %d", len(dataKey), keySize)
	}
	sealed := s.sealed
	s.sealed = nil
	secret, err := newGCM(dataKey).Open(sealed[:0], make([]byte, nonceSize), sealed, s.readable)
	if err != nil {
		return nil, corrupt("%s: its sealed part does not open with its data key", s.id)
	}
	m := s.Readable()
	if err := m.readSecret(secret); err != nil {
		return nil, err
	}
	return &m, nil
}

// errOpened is a mistake of the calling code: parse the bytes again.
var errOpened = errors.New("manifest: opened already, which consumed it")

// readSecret is the inverse of writeSecret, for as many keys as m has chunks.
// A layer's Config stays where it is, since it may be large; an image's is
// copied, so that it does not keep the whole manifest in memory.
func (m *Manifest) readSecret(secret []byte) error {
	keys := keySize * len(m.Chunks)
	if len(secret) <= keys || len(secret) <= keys+int(secret[keys]) {
		return corrupt("secret of %d bytes for %d chunks", len(secret), len(m.Chunks))
	}
	for i := range m.Chunks {
		m.Chunks[i].Key = chunk.Key(secret[i*keySize:])
	}
	config := keys + 1 + int(secret[keys])
	m.Source, m.Config = string(secret[keys+1:config]), secret[config:len(secret):len(secret)]
	if m.Kind == Image {
		m.Config = bytes.Clone(m.Config)
	}
	clear(secret[:keys])
	if err := m.checkSecret(); err != nil {
		return corrupt("%v", err)
	}
	return nil
}

// Rewrap gives the same manifest, of the same id, with its data key wrapped by
// to, whose key keyURL names. It does not open the sealed part, and copies it.
func (s *Sealed) Rewrap(ctx context.Context, from, to Wrapper, keyURL string) ([]byte, error) {
	if s.sealed == nil {
		return nil, errOpened
	}
	key, err := s.DataKey(ctx, from)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	envelope, err := newEnvelope(ctx, s.id, envelopeKey{key, keyURL, to})
	if err != nil {
		return nil, err
	}
	return bytes.Join([][]byte{s.readable, s.sealed, envelope}, nil), nil
}
