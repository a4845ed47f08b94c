package functions

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"thaw/cluster"
)

// Concurrency of one account's functions.
const (
	accountConcurrency = 1000 // all together
	leastUnreserved    = 100  // what functions cannot reserve
)

// claims is an account's record: what each function has reserved. It may hold
// too much after a crash, until another function needs it, never too little.
type claims struct{ Reserved map[string]claim }

// claim is made before a function has what it reserves, and given back after.
type claim struct {
	N     int
	Since time.Time
}

// settling is how old a claim is that a change of its function under way cannot
// have made: longer than any request takes.
const settling = 5 * time.Minute

func (c claims) sum() (n int) {
	for _, r := range c.Reserved {
		n += r.N
	}
	return n
}

// Reserve sets a function's share of its account's concurrency; nil: none of
// its own. At least 100 of the account's 1000 stay unreserved.
func (s *Store) Reserve(ctx context.Context, id ID, n *int) error {
	f, err := s.Get(ctx, id)
	if err != nil {
		return err
	}
	grows := n != nil && (f.Reserved == nil || *n > *f.Reserved)
	if grows { // claimed before it is used, given back after
		if err := s.claim(ctx, id, n); err != nil {
			return err
		}
	}
	if _, err := s.Update(ctx, id, func(f *Function) error { f.Reserved = n; return nil }); err != nil {
		return err
	}
	if grows {
		return nil
	}
	return s.claim(ctx, id, n)
}

// Concurrency gives an account's limit and what of it no function has reserved.
func (s *Store) Concurrency(ctx context.Context, account string) (limit, unreserved int, err error) {
	c, _, err := s.claims(ctx, account)
	if err != nil {
		return 0, 0, err
	}
	return accountConcurrency, accountConcurrency - c.sum(), nil
}

// claim notes in the account's record what a function reserves; nil: nothing.
func (s *Store) claim(ctx context.Context, id ID, n *int) error {
	for range attempts {
		c, r, err := s.claims(ctx, id.Account)
		if err != nil {
			return err
		}
		had, claimed := c.Reserved[id.Name]
		if n == nil && !claimed {
			return nil
		}
		delete(c.Reserved, id.Name)
		if n != nil {
			c.Reserved[id.Name] = claim{N: *n, Since: s.now()}
		}
		if n != nil && *n > had.N && accountConcurrency-c.sum() < leastUnreserved {
			if dropped, err := s.prune(ctx, id, c); err != nil {
				return err
			} else if !dropped || accountConcurrency-c.sum() < leastUnreserved {
				return refuse(kindParameter, "Specified ReservedConcurrentExecutions for function decreases account's "+
					"UnreservedConcurrentExecution below its minimum value of [%d].", leastUnreserved)
			}
		}
		err = s.putClaims(ctx, r, c)
		if !errors.Is(err, cluster.ErrConflict) && !errors.Is(err, cluster.ErrExists) {
			return err
		}
	}
	return busy(id)
}

// prune takes back claims that crashes left: what is older than any request,
// and more than the function has.
func (s *Store) prune(ctx context.Context, id ID, c claims) (dropped bool, err error) {
	for name, had := range c.Reserved {
		if name == id.Name || s.now().Sub(had.Since) < settling {
			continue
		}
		f, err := s.Get(ctx, ID{Account: id.Account, Name: name})
		if err != nil && !errors.Is(err, ErrNotFound) {
			return dropped, err
		}
		switch {
		case err != nil || f.Reserved == nil:
			delete(c.Reserved, name)
		case *f.Reserved < had.N:
			c.Reserved[name] = claim{N: *f.Reserved, Since: had.Since}
		default:
			continue
		}
		dropped = true
	}
	return dropped, nil
}

func (s *Store) claims(ctx context.Context, account string) (claims, cluster.Record, error) {
	r, err := s.read.Get(ctx, accountKey(account))
	c := claims{}
	switch {
	case errors.Is(err, cluster.ErrNotFound):
		r = cluster.Record{Key: accountKey(account)}
	case err != nil:
		return c, r, fmt.Errorf("read what account %s has reserved: %w", account, err)
	default:
		if err := decode(r, &c); err != nil {
			return c, r, err
		}
	}
	if c.Reserved == nil {
		c.Reserved = map[string]claim{}
	}
	return c, r, nil
}

func (s *Store) putClaims(ctx context.Context, r cluster.Record, c claims) error {
	value, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if r.Revision == 0 {
		_, err = s.write.Create(ctx, r.Key, value)
	} else {
		_, err = s.write.Update(ctx, r.Key, value, r.Revision)
	}
	return err
}
