package origin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// State is where a root is in its life.
type State string

// A root is active, then retired (images move out), expired (nothing reads it)
// and deleted.
const (
	Active  State = "active"
	Retired State = "retired"
	Expired State = "expired"
	Deleted State = "deleted"
)

// firstRoot is the root of a fresh origin.
const firstRoot = "r1"

// Root is a namespace of manifests and chunks. Epoch, Placement and Class go
// into the salt of its chunks.
type Root struct {
	Name      string `json:"-"` // from the key
	State     State  `json:"state"`
	Epoch     uint32 `json:"epoch"`
	Placement string `json:"placement"`
	Class     string `json:"class"`
}

// rootsKey is what the keys of all roots start with.
const rootsKey = "roots"

func stateKey(root string) string { return rootsKey + "/" + root + "/state" }

// encode gives the record's one form: what decode takes is what encode wrote.
func (r Root) encode() ([]byte, error) {
	switch r.State {
	case Active, Retired, Expired, Deleted:
		return json.Marshal(r)
	}
	return nil, fmt.Errorf("origin: %q is not a root's state", r.State)
}

func decodeRoot(name string, data []byte) (Root, error) {
	var r Root
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("%w: state of root %s: %w", ErrCorrupt, name, err)
	}
	if again, err := r.encode(); err != nil || !bytes.Equal(again, data) {
		return r, fmt.Errorf("%w: state of root %s is not in its one form", ErrCorrupt, name)
	}
	r.Name = name
	return r, nil
}

// Roots gives the roots that have a state, r2 before r10.
func (o *Origin) Roots(ctx context.Context) ([]Root, error) {
	var roots []Root
	for name, err := range o.Children(ctx, rootsKey) {
		if err != nil {
			return nil, err
		}
		data, _, err := o.Latest(ctx, stateKey(name))
		if errors.Is(err, ErrNotFound) {
			continue // not a root, or not yet
		}
		if err != nil {
			return nil, err
		}
		r, err := decodeRoot(name, data)
		if err != nil {
			return nil, o.fail("read", stateKey(name), err)
		}
		roots = append(roots, r)
	}
	slices.SortFunc(roots, func(a, b Root) int {
		return cmp.Or(cmp.Compare(len(a.Name), len(b.Name)), cmp.Compare(a.Name, b.Name))
	})
	return roots, nil
}

// Active gives the root that new images go to. A fresh origin gets its first
// one, r1, with epoch 0; processes at once agree on it. While images move from
// one root to the next both may be active: the later one is meant.
func (o *Origin) Active(ctx context.Context) (Root, error) {
	roots, err := o.Roots(ctx)
	if err != nil {
		return Root{}, err
	}
	if len(roots) == 0 {
		return o.first(ctx)
	}
	for _, r := range slices.Backward(roots) {
		if r.State == Active {
			return r, nil
		}
	}
	return Root{}, o.fail("look for", "an active root", ErrNotFound)
}

func (o *Origin) first(ctx context.Context) (Root, error) {
	data, err := Root{State: Active}.encode()
	if err != nil {
		return Root{}, err
	}
	key := stateKey(firstRoot)
	if _, err := o.createRecord(ctx, recordKey(key, 1), data); err != nil {
		return Root{}, err
	}
	if data, _, err = o.Latest(ctx, key); err != nil { // ours, or another's that came first
		return Root{}, err
	}
	r, err := decodeRoot(firstRoot, data)
	return r, o.fail("read", key, err)
}

// SetRoot gives a root a state, which makes the root if there is none.
func (o *Origin) SetRoot(ctx context.Context, r Root) error {
	if err := check(rootRule, "root", r.Name); err != nil {
		return err
	}
	data, err := r.encode()
	if err != nil {
		return err
	}
	_, err = o.PutNext(ctx, stateKey(r.Name), func(uint64) ([]byte, error) { return data, nil })
	return err
}
