package origin

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
)

const (
	// seqDigits is the length of a record's number, zero-padded so that keys
	// sort: the longest uint64.
	seqDigits = 20
	// keepRecords is how many records stay; older ones are removed. One would
	// do: the others are what a human can look back on, and what shows a slow
	// writer that its number may have been used before (PutNext).
	keepRecords = 4
	// maxConflicts bounds how often PutNext loses against others. Each loss is
	// another's success, so 20 writers at once need at most 20.
	maxConflicts = 256
	// maxRecord bounds a record in bytes: a sealed JSON object of a few fields.
	maxRecord = 256 << 10
)

func recordKey(key string, seq uint64) string {
	return fmt.Sprintf("%s/%0*d", key, seqDigits, seq)
}

// PutNext stores record(seq) under the number after the highest, and gives that
// number. Of writers at once each gets a number of its own, and record may be
// called several times, with ascending numbers. Older records but the last few
// are removed afterwards, as far as the store lets it: what stays costs only
// space. After maxConflicts lost races it gives ErrConflict.
//
// A writer that stalls between listing and writing may find a low number free
// that was used and removed meanwhile. Such a number is at least keepRecords
// below the highest then, so PutNext lists again and takes another.
func (o *Origin) PutNext(ctx context.Context, key string, record func(seq uint64) ([]byte, error)) (uint64, error) {
	if err := checkKey(key); err != nil {
		return 0, err
	}
	seqs, err := o.records(ctx, key)
	if err != nil {
		return 0, err
	}
	seq := highest(seqs)
	for range maxConflicts {
		if seq == math.MaxUint64 {
			return 0, o.fail("put", key, fmt.Errorf("%w: no number is left", ErrCorrupt))
		}
		seq++
		data, err := record(seq)
		if err != nil {
			return 0, err
		}
		added, err := o.createRecord(ctx, recordKey(key, seq), data)
		if err != nil {
			return 0, err
		}
		if !added {
			continue
		}
		if seqs, err = o.records(ctx, key); err != nil {
			return 0, err
		}
		top := highest(seqs)
		if top-seq < keepRecords { // nothing up to top-keepRecords was ours
			o.prune(ctx, key, seqs)
			return seq, nil
		}
		seq = top
	}
	return 0, o.fail("put", key, ErrConflict)
}

func (o *Origin) createRecord(ctx context.Context, key string, data []byte) (added bool, err error) {
	err = o.do(ctx, "put", key, func() error {
		added, err = o.bucket.Create(ctx, key, data)
		return err
	})
	return added, err
}

// prune removes all records but the last few. A failure leaves some behind,
// which the next one tries again.
func (o *Origin) prune(ctx context.Context, key string, seqs []uint64) {
	top := highest(seqs)
	for _, seq := range seqs {
		if top-seq < keepRecords {
			continue
		}
		k := recordKey(key, seq)
		_ = o.do(ctx, "remove", k, func() error { return o.bucket.Remove(ctx, k) })
	}
}

// Forget removes all records under key, the oldest first: killed in between, the
// highest is still the highest. It is for keys that never get a record again,
// for their numbers would start anew.
func (o *Origin) Forget(ctx context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	seqs, err := o.records(ctx, key)
	if err != nil {
		return err
	}
	slices.Sort(seqs)
	for _, seq := range seqs {
		k := recordKey(key, seq)
		err := o.do(ctx, "remove", k, func() error { return o.bucket.Remove(ctx, k) })
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return nil
}

// Latest gives the record of the highest number under key, or ErrNotFound.
func (o *Origin) Latest(ctx context.Context, key string) (data []byte, seq uint64, err error) {
	if err := checkKey(key); err != nil {
		return nil, 0, err
	}
	for try := range maxConflicts {
		seqs, err := o.records(ctx, key)
		if err != nil {
			return nil, 0, err
		}
		if seq = highest(seqs); seq == 0 && try > 0 {
			return nil, 0, o.fail("get", key, ErrNotFound)
		}
		if seq == 0 {
			continue // S3 servers over a folder may miss all when many come and go
		}
		k := recordKey(key, seq)
		err = o.do(ctx, "get", k, func() error {
			data, err = o.bucket.Get(ctx, k, maxRecord)
			return err
		})
		if !errors.Is(err, ErrNotFound) {
			return data, seq, err
		}
		// Enough newer ones were written to prune this one: look again.
	}
	return nil, 0, o.fail("get", key, ErrConflict)
}

// records lists the numbers under key. Objects that are no numbers are passed
// over.
func (o *Origin) records(ctx context.Context, key string) ([]uint64, error) {
	var seqs []uint64
	for e, err := range o.bucket.List(ctx, key+"/", true) {
		if err != nil {
			return nil, o.fail("list", key, err)
		}
		name := path.Base(e.Key)
		seq, err := strconv.ParseUint(name, 10, 64)
		if err == nil && len(name) == seqDigits && seq > 0 && e.Key == recordKey(key, seq) {
			seqs = append(seqs, seq)
		}
	}
	return seqs, nil
}

func highest(seqs []uint64) uint64 {
	if len(seqs) == 0 {
		return 0
	}
	return slices.Max(seqs)
}
