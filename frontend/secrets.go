package frontend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"thaw/functions"
	"thaw/keys"
	"thaw/lambdaapi"
)

// maxOpened bounds the functions whose variables are at hand, 4 KB each at most.
const maxOpened = 4096

// secrets seals functions' variables with the keys of their tenants: the
// cluster's records and backups hold none in clear. It is safe for concurrent use.
type secrets struct {
	keeper func(ctx context.Context, account string) (keys.Keeper, error)

	mu     sync.Mutex
	opened map[string]map[string]string // by what is sealed; nobody changes them
}

func newSecrets(keeper func(context.Context, string) (keys.Keeper, error)) *secrets {
	if keeper == nil {
		keeper = func(context.Context, string) (keys.Keeper, error) {
			return nil, errors.New("frontend: there is no key for variables")
		}
	}
	return &secrets{keeper: keeper, opened: map[string]map[string]string{}}
}

// bound is what variables are sealed for.
func bound(id functions.ID) []byte { return []byte("thaw function variables v1\x00" + id.String()) }

// seal seals a function's variables.
func (s *secrets) seal(ctx context.Context, id functions.ID, vars map[string]string) ([]byte, error) {
	keeper, err := s.keeper(ctx, id.Account)
	if err != nil {
		return nil, fmt.Errorf("key of account %s: %w", id.Account, err)
	}
	if vars == nil {
		vars = map[string]string{}
	}
	plain, err := json.Marshal(vars)
	if err != nil {
		return nil, err
	}
	sealed, err := keys.Seal(ctx, keeper, plain, bound(id))
	if err != nil {
		return nil, fmt.Errorf("seal variables of %s: %w", id, err)
	}
	return sealed, nil
}

// open is seal's inverse: nil for nil.
func (s *secrets) open(ctx context.Context, id functions.ID, sealed []byte) (map[string]string, error) {
	if sealed == nil {
		return nil, nil
	}
	at := id.String() + "\x00" + string(sealed)
	s.mu.Lock()
	vars := s.opened[at]
	s.mu.Unlock()
	if vars != nil {
		return vars, nil
	}
	keeper, err := s.keeper(ctx, id.Account)
	if err != nil {
		return nil, fmt.Errorf("key of account %s: %w", id.Account, err)
	}
	plain, err := keys.Unseal(ctx, keeper, sealed, bound(id))
	if err != nil {
		return nil, fmt.Errorf("open variables of %s: %w", id, err)
	}
	if json.Unmarshal(plain, &vars) != nil || vars == nil {
		return nil, fmt.Errorf("open variables of %s: %w", id, keys.ErrRefused)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.opened) >= maxOpened {
		for other := range s.opened { // any
			delete(s.opened, other)
			break
		}
	}
	s.opened[at] = vars
	return vars, nil
}

// closed words for clients that variables cannot be opened.
func closed(err error) string {
	why := "the key of the account's tenant cannot be reached"
	if errors.Is(err, keys.ErrRefused) {
		why = "the key of the account's tenant does not open them"
	}
	return "Lambda was unable to decrypt the environment variables because " + why + "."
}

// unopened is the error of an invoke whose function's variables cannot be opened.
func unopened(err error) error {
	return lambdaapi.KMSAccessDeniedException.Errorf("%s", closed(err))
}
