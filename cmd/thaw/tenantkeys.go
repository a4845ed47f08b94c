//go:build cloud

package main

import (
	"context"
	"sync"

	"thaw/keys"
)

// tenantKeys are the keys of accounts' tenants, opened when they are first asked
// for. It is safe for concurrent use. Close it.
type tenantKeys struct {
	g *Globals

	mu   sync.Mutex // guards held
	held map[string]*keys.Tenant
}

func newTenantKeys(g *Globals) *tenantKeys { return &tenantKeys{g: g, held: map[string]*keys.Tenant{}} }

// keeper gives the key of an account's tenant, and makes it for one that has
// nothing yet.
func (k *tenantKeys) keeper(ctx context.Context, account string) (keys.Keeper, error) {
	tenant := k.g.tenantOf(account)
	k.mu.Lock()
	held := k.held[tenant]
	k.mu.Unlock()
	if held != nil {
		return held, nil
	}
	s, err := k.g.forTenant(tenant).open(ctx, true)
	if err != nil {
		return nil, err
	}
	if err := s.Origin.Close(); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held[tenant] == nil {
		k.held[tenant] = s.key
	} else {
		_ = s.key.Close() // another was quicker
	}
	return k.held[tenant], nil
}

// Close lets go of all keys.
func (k *tenantKeys) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, t := range k.held {
		_ = t.Close() // nothing was written
	}
	clear(k.held)
}
