package origin

import (
	"context"
	"errors"
)

// Traces are one tenant's traces of images in one root, as bytes: for each image
// a numbered record, of which the highest counts. It is safe for concurrent use.
type Traces struct {
	o            *Origin
	root, tenant string
}

// Traces gives a tenant's traces in a root; their names are image ids. Names
// that no root or tenant can have fail at use.
func (o *Origin) Traces(root, tenant string) *Traces { return &Traces{o, root, tenant} }

func (t *Traces) key(image string) (string, error) {
	return "roots/" + t.root + "/traces/" + t.tenant + "/" + image,
		errors.Join(check(rootRule, "root", t.root), CheckTenant(t.tenant), check(objectRule, "object", image))
}

// Put stores an image's next trace. Of several at once one counts.
func (t *Traces) Put(ctx context.Context, image string, data []byte) error {
	key, err := t.key(image)
	if err == nil {
		_, err = t.o.PutNext(ctx, key, func(uint64) ([]byte, error) { return data, nil })
	}
	return err
}

// Get gives an image's last trace, unverified, or ErrNotFound.
func (t *Traces) Get(ctx context.Context, image string) ([]byte, error) {
	key, err := t.key(image)
	if err != nil {
		return nil, err
	}
	data, _, err := t.o.Latest(ctx, key)
	return data, err
}

// Remove removes all of an image's traces, if there are any. One that is put at
// the same time may stay.
func (t *Traces) Remove(ctx context.Context, image string) error {
	key, err := t.key(image)
	if err != nil {
		return err
	}
	seqs, err := t.o.records(ctx, key)
	for _, seq := range seqs {
		k := recordKey(key, seq)
		rerr := t.o.do(ctx, "remove", k, func() error { return t.o.bucket.Remove(ctx, k) })
		if !errors.Is(rerr, ErrNotFound) { // another one's removal or pruning
			err = errors.Join(err, rerr)
		}
	}
	return err
}
