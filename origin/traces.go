package origin

import (
	"context"
	"errors"
)

// A trace of an image is a numbered record, of which the highest counts. It is
// found by root, tenant and image id; names that these cannot be fail.

func traceKey(root, tenant, image string) (string, error) {
	return "roots/" + root + "/traces/" + tenant + "/" + image,
		errors.Join(check(rootRule, "root", root), CheckTenant(tenant), check(objectRule, "object", image))
}

// PutTrace stores an image's next trace. Of several at once one counts.
func (o *Origin) PutTrace(ctx context.Context, root, tenant, image string, data []byte) error {
	key, err := traceKey(root, tenant, image)
	if err == nil {
		_, err = o.PutNext(ctx, key, func(uint64) ([]byte, error) { return data, nil })
	}
	return err
}

// Trace gives an image's last trace, unverified, or ErrNotFound.
func (o *Origin) Trace(ctx context.Context, root, tenant, image string) ([]byte, error) {
	key, err := traceKey(root, tenant, image)
	if err != nil {
		return nil, err
	}
	data, _, err := o.Latest(ctx, key)
	return data, err
}

// RemoveTraces removes all of an image's traces, if there are any. One that is
// put at the same time may stay.
func (o *Origin) RemoveTraces(ctx context.Context, root, tenant, image string) error {
	key, err := traceKey(root, tenant, image)
	if err != nil {
		return err
	}
	seqs, err := o.records(ctx, key)
	for _, seq := range seqs {
		k := recordKey(key, seq)
		rerr := o.do(ctx, "remove", k, func() error { return o.bucket.Remove(ctx, k) })
		if !errors.Is(rerr, ErrNotFound) { // another one's removal or pruning
			err = errors.Join(err, rerr)
		}
	}
	return err
}
