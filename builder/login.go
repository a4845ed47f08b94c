package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"thaw/cluster"
	"thaw/keys"
)

// Logins keeps accounts' credentials for registries, sealed with the key of the
// account's tenant. It is safe for concurrent use.
//
//	<account>/<registry>   {"user": …, "password": keys.Seal's}
//
// Account, registry and user are authenticated with the password, so that a
// record cannot be moved to another account.
type Logins struct {
	records *cluster.Records
	keeper  func(ctx context.Context, account string) (keys.Keeper, error)
}

// NewLogins makes a store over records of its own.
func NewLogins(records *cluster.Records, keeper func(ctx context.Context, account string) (keys.Keeper, error)) *Logins {
	return &Logins{records, keeper}
}

// login is a record.
type login struct {
	User     string `json:"user"`
	Password []byte `json:"password"`
}

// maxPassword is more than cloud registries' tokens have, in bytes.
const maxPassword = 16 << 10

// registries are host or host:port, as references name them.
var registries = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,252}[a-zA-Z0-9])?(:[0-9]{1,5})?$`)

// checkRegistry refuses what no reference can name.
func checkRegistry(registry string) error {
	if !registries.MatchString(registry) {
		return fmt.Errorf("%.80q is no registry: write host or host:port", registry)
	}
	return nil
}

// canonical gives a registry the name that references without a host are read
// with, where it has several.
func canonical(registry string) string {
	registry = strings.ToLower(registry)
	if registry == name.DefaultRegistry || "index."+registry == name.DefaultRegistry {
		return name.DefaultRegistry
	}
	return registry
}

// Set keeps credentials, in place of those that are there.
func (l *Logins) Set(ctx context.Context, account, registry, user, password string) error {
	if err := checkRegistry(registry); err != nil {
		return err
	}
	registry = canonical(registry)
	if user == "" || password == "" || len(user) > maxPassword || len(password) > maxPassword {
		return fmt.Errorf("credentials for %s: want a user and a password, of at most %d bytes", registry, maxPassword)
	}
	keeper, err := l.keeper(ctx, account)
	if err != nil {
		return fmt.Errorf("key of account %s: %w", account, err)
	}
	r := login{User: user}
	if r.Password, err = keys.Seal(ctx, keeper, []byte(password), r.bound(account+"/"+registry)); err != nil {
		return fmt.Errorf("seal credentials: %w", err)
	}
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	key := account + "/" + registry
	for range countTries {
		old, err := l.records.Get(ctx, key)
		if errors.Is(err, cluster.ErrNotFound) {
			_, err = l.records.Create(ctx, key, value)
		} else if err == nil {
			_, err = l.records.Update(ctx, key, value, old.Revision)
		}
		if !errors.Is(err, cluster.ErrConflict) && !errors.Is(err, cluster.ErrExists) {
			return err
		}
	}
	return fmt.Errorf("credentials for %s are being changed by others: %w", registry, cluster.ErrConflict)
}

// Get gives an account's credentials for a registry; without a user there are
// none. It is what Images.Login wants.
func (l *Logins) Get(ctx context.Context, account, registry string) (user, password string, err error) {
	key := account + "/" + canonical(registry)
	rec, err := l.records.Get(ctx, key)
	if errors.Is(err, cluster.ErrNotFound) {
		return "", "", nil
	}
	if err != nil {
		return "", "", err
	}
	var r login
	if json.Unmarshal(rec.Value, &r) != nil {
		return "", "", fmt.Errorf("the record of the credentials for %s is damaged: log in again", registry)
	}
	keeper, err := l.keeper(ctx, account)
	if err != nil {
		return "", "", fmt.Errorf("key of account %s: %w", account, err)
	}
	plain, err := keys.Unseal(ctx, keeper, r.Password, r.bound(key))
	if err != nil {
		return "", "", fmt.Errorf("open credentials: %w", err)
	}
	return r.User, string(plain), nil
}

// Remove forgets credentials. That there are none is not an error.
func (l *Logins) Remove(ctx context.Context, account, registry string) error {
	key := account + "/" + canonical(registry)
	r, err := l.records.Get(ctx, key)
	if err == nil {
		err = l.records.Delete(ctx, key, r.Revision)
	}
	if errors.Is(err, cluster.ErrNotFound) {
		return nil
	}
	return err
}

// List gives the registries that an account has credentials for.
func (l *Logins) List(ctx context.Context, account string) ([]string, error) {
	records, err := l.records.List(ctx, account+"/")
	var found []string
	for _, r := range records {
		found = append(found, strings.TrimPrefix(r.Key, account+"/"))
	}
	return found, err
}

// bound is what is authenticated beside the password.
func (r *login) bound(place string) []byte {
	return []byte("thaw registry login v1\x00" + place + "\x00" + r.User)
}
