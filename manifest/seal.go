package manifest

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"thaw/chunk"
)

const (
	magic       = "thaw mf\n"
	version     = 1
	fixedSize   = 68 // bytes of the readable part in front of the tenant
	entrySize   = 40 // bytes of a chunk in the readable part
	keySize     = 32 // bytes of a chunk's key, and of the data key
	nonceSize   = 12 // bytes of GCM's nonce
	tagSize     = 16 // bytes of GCM's tag
	wrappedSize = keySize + 2*sha256.Size
)

// Wrapper is what manifests need of a tenant's key. Unwrap must tell a value
// that was changed or wrapped by another key; its error is passed on.
type Wrapper interface {
	Wrap(ctx context.Context, plain []byte) ([]byte, error)
	Unwrap(ctx context.Context, wrapped []byte) ([]byte, error)
}

// Seal encodes m under a new data key, wrapped by w, whose key keyURL names.
// It checks m first. Equal m and salt give equal ids and other bytes each
// time. m is not kept or changed; next to its own Config there is one copy of
// it in memory, inside data.
func Seal(ctx context.Context, m *Manifest, salt chunk.Salt, keyURL string, w Wrapper) (data []byte, id ID, err error) {
	dataKey := make([]byte, keySize)
	defer clear(dataKey)
	_, _ = rand.Read(dataKey) // never fails
	return seal(ctx, m, salt, envelopeKey{dataKey, keyURL, w})
}

// envelopeKey is what an envelope is made with.
type envelopeKey struct {
	data []byte
	url  string
	by   Wrapper
}

// seal hashes the secret before it lays it out, so that the whole size is
// known by then and one buffer is filled and encrypted in place.
func seal(ctx context.Context, m *Manifest, salt chunk.Salt, key envelopeKey) ([]byte, ID, error) {
	if err := m.checkAll(); err != nil {
		return nil, ID{}, fmt.Errorf("manifest: cannot seal: %w", err)
	}
	readable := m.appendReadable(make([]byte, 0, m.readableSize()), m.commit(salt))
	id := ID(sha256.Sum256(readable))
	envelope, err := newEnvelope(ctx, id, key)
	if err != nil {
		return nil, ID{}, err
	}
	start := len(readable)
	data := make([]byte, 0, start+m.sealedSize()+len(envelope))
	out := appender{append(data, readable...)}
	m.writeSecret(&out)
	secret := out.b[start:]
	sealed := newGCM(key.data).Seal(secret[:0], make([]byte, nonceSize), secret, readable)
	return append(out.b[:start+len(sealed)], envelope...), id, nil
}

func (m *Manifest) checkAll() error {
	if err := m.check(); err != nil {
		return err
	}
	before := int64(-1)
	for _, e := range m.Chunks {
		if err := m.checkEntry(before, e); err != nil {
			return err
		}
		before = int64(e.Index)
	}
	return m.checkSecret()
}

// commit ties the id to the secret without telling it: only who has the salt
// can confirm a guess.
func (m *Manifest) commit(salt chunk.Salt) [sha256.Size]byte {
	mac := hmac.New(sha256.New, salt[:])
	mac.Write([]byte("thaw commit v1\x00"))
	m.writeSecret(mac)
	return [sha256.Size]byte(mac.Sum(nil))
}

func (m *Manifest) readableSize() int {
	return fixedSize + len(m.Tenant) + entrySize*len(m.Chunks)
}

func (m *Manifest) sealedSize() int {
	return keySize*len(m.Chunks) + 1 + len(m.Source) + len(m.Config) + tagSize
}

func (m *Manifest) appendReadable(b []byte, commit [sha256.Size]byte) []byte {
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint16(b, version)
	b = append(b, byte(m.Kind), byte(m.shift()))
	b = binary.BigEndian.AppendUint16(b, m.Layout)
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Tenant)))
	b = binary.BigEndian.AppendUint64(b, uint64(m.Size))
	b = binary.BigEndian.AppendUint64(b, uint64(m.sealedSize()))
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.Chunks)))
	b = append(b, commit[:]...)
	b = append(b, m.Tenant...)
	for _, e := range m.Chunks {
		b = binary.BigEndian.AppendUint32(b, e.Index)
		b = binary.BigEndian.AppendUint32(b, e.Size)
		b = append(b, e.Name[:]...)
	}
	return b
}

// writeSecret writes to what cannot fail: a hash or an appender.
func (m *Manifest) writeSecret(w io.Writer) {
	for i := range m.Chunks {
		_, _ = w.Write(m.Chunks[i].Key[:])
	}
	_, _ = w.Write([]byte{byte(len(m.Source))})
	_, _ = w.Write([]byte(m.Source))
	_, _ = w.Write(m.Config)
}

// appender is a Writer into a slice that has room.
type appender struct{ b []byte }

func (a *appender) Write(p []byte) (int, error) {
	a.b = append(a.b, p...)
	return len(p), nil
}

// newEnvelope wraps the data key for the manifest of that id.
func newEnvelope(ctx context.Context, id ID, key envelopeKey) ([]byte, error) {
	if err := checkURL(key.url); err != nil {
		return nil, fmt.Errorf("manifest: cannot seal: %w", err)
	}
	urlHash := sha256.Sum256([]byte(key.url))
	plain := append(append(append(make([]byte, 0, wrappedSize), key.data...), id[:]...), urlHash[:]...)
	defer clear(plain)
	wrapped, err := key.by.Wrap(ctx, plain)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: wrap its data key: %w", id, err)
	}
	if len(wrapped) == 0 || len(wrapped) > maxWrapped {
		return nil, fmt.Errorf("manifest %s: wrapped data key has %d bytes, want 1 to %d", id, len(wrapped), maxWrapped)
	}
	b := make([]byte, 0, 4+len(key.url)+len(wrapped))
	b = binary.BigEndian.AppendUint16(b, uint16(len(key.url)))
	b = append(b, key.url...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(wrapped)))
	return append(b, wrapped...), nil
}

// checkURL keeps what could not be shown on a terminal out of a manifest. It
// does not quote the URL: whether there is a secret in it is not known here.
func checkURL(u string) error {
	if len(u) == 0 || len(u) > maxKeyURL {
		return fmt.Errorf("key URL of %d bytes: want 1 to %d", len(u), maxKeyURL)
	}
	for i := range len(u) {
		if u[i] <= ' ' || u[i] > '~' {
			return fmt.Errorf("key URL has byte %#02x at %d: escape it", u[i], i)
		}
	}
	return nil
}

// newGCM panics for a key that is not 32 bytes long.
func newGCM(key []byte) cipher.AEAD {
	if len(key) != keySize {
		panic("manifest: data key of a wrong length")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("manifest: " + err.Error()) // a 32-byte key is always accepted
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic("manifest: " + err.Error()) // AES has GCM's block size
	}
	return gcm
}
