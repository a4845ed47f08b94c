//go:build cloud

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"thaw/builder"
	"thaw/cluster"
	"thaw/origin"
)

// platforms is the key, in an origin, of the notes that platforms leave there,
// each under a word of its own; and in a platform's records that of its word.
const platforms = "platforms"

// own is kept for one platform of perhaps several: none of them knows what the
// others need, nor does one whose records were lost know what they needed. So
// where another's note is, there is nothing to remove, but an error.
type own struct {
	kept
	records *cluster.Records
}

// Each implements builder.Kept.
func (k own) Each(ctx context.Context, f func(builder.Thing) error) error {
	if err := k.alone(ctx); err != nil {
		return err
	}
	return k.kept.Each(ctx, f)
}

// alone notes in the origin that this platform uses it, and fails if another does.
func (k own) alone(ctx context.Context) error {
	o, err := origin.Open(ctx, k.g.Origin, originDrivers()...)
	if err != nil {
		return err
	}
	defer o.Close()
	if o.Absent() != nil {
		return nil // nothing is in it
	}
	word, err := k.word(ctx)
	if err != nil {
		return err
	}
	if _, _, err = o.Latest(ctx, platforms+"/"+word); errors.Is(err, origin.ErrNotFound) {
		_, err = o.PutNext(ctx, platforms+"/"+word, func(uint64) ([]byte, error) { return nil, nil })
	}
	if err != nil {
		return err
	}
	var others []string
	for name, err := range o.Children(ctx, platforms) {
		if err != nil {
			return err
		}
		if name != word {
			others = append(others, platforms+"/"+name)
		}
	}
	if len(others) > 0 {
		return fmt.Errorf("the origin has been another platform's too: remove %s there, if nobody needs its functions", strings.Join(others, " and "))
	}
	return nil
}

// word is this platform's, made at first.
func (k own) word(ctx context.Context) (string, error) {
	r, err := k.records.Get(ctx, platforms)
	if errors.Is(err, cluster.ErrNotFound) {
		word := rand.Text()
		if _, err = k.records.Create(ctx, platforms, []byte(word)); err == nil {
			return word, nil
		}
		if errors.Is(err, cluster.ErrExists) {
			r, err = k.records.Get(ctx, platforms)
		}
	}
	return string(r.Value), err
}
