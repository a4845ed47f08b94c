package catalog

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"
)

// version is the record's; a reader refuses others.
const version = 1

// record is the JSON of the package comment.
type record struct {
	Version int    `json:"version"`
	Image   string `json:"image"`
	Root    string `json:"root"`
	Removed bool   `json:"removed"`
	Time    string `json:"time"`
	Seal    []byte `json:"seal"`
}

// place is where a record lies: what it must have been sealed for.
type place struct {
	tenant, name string
	seq          uint64
}

// digest is what the seal wraps.
func (r record) digest(p place) []byte {
	msg := []byte("thaw reference v1\x00")
	field := func(s string) {
		msg = binary.BigEndian.AppendUint32(msg, uint32(len(s)))
		msg = append(msg, s...)
	}
	field(p.tenant)
	field(p.name)
	msg = binary.BigEndian.AppendUint64(msg, p.seq)
	field(r.Image)
	field(r.Root)
	removed := byte(0)
	if r.Removed {
		removed = 1
	}
	msg = append(msg, removed)
	field(r.Time)
	sum := sha256.Sum256(msg)
	return sum[:]
}

func (c *Catalog) seal(ctx context.Context, p place, r record) (data []byte, err error) {
	if r.Seal, err = c.keeper.Wrap(ctx, r.digest(p)); err != nil {
		return nil, err
	}
	return json.Marshal(r)
}

// open decodes and verifies a record.
func (c *Catalog) open(ctx context.Context, p place, data []byte) (r record, err error) {
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	// One form only: unknown, doubled or missing fields and white space do not
	// survive the way back.
	again, err := json.Marshal(r)
	if err != nil || !bytes.Equal(again, data) || r.Version != version {
		return r, fmt.Errorf("%w: not a record of version %d", ErrCorrupt, version)
	}
	digest, err := c.keeper.Unwrap(ctx, r.Seal)
	if err != nil {
		return r, err
	}
	if subtle.ConstantTimeCompare(digest, r.digest(p)) != 1 {
		return r, fmt.Errorf("%w: sealed for something else", ErrCorrupt)
	}
	if set := isID(r.Image) && r.Root != ""; set == r.Removed {
		return r, fmt.Errorf("%w: neither an image nor a removal", ErrCorrupt)
	}
	return r, nil
}

func (r record) reference(name string, seq uint64) (Reference, error) {
	t, err := time.Parse(time.RFC3339, r.Time)
	if err != nil {
		return Reference{}, fmt.Errorf("catalog: record %d of name %s: %w: %w", seq, name, ErrCorrupt, err)
	}
	return Reference{Name: name, Image: r.Image, Root: r.Root, Seq: seq, Time: t}, nil
}
