//go:build cloud

package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"thaw/builder"
	"thaw/functions"
	"thaw/origin"
)

// kept is builder.Kept over the origin: of each tenant that is an account's, its
// packages, and the names of images that builds have made. Other names are the
// tenant's own.
//
// A manifest is copied before it is removed, and names are looked for after: so
// it can be put back if another build has named the image meanwhile, also by the
// next process. (A conversion looks for the manifest after it has named it.)
type kept struct{ g *Globals }

// buildNames are functions.ID.Reference's.
var buildNames = regexp.MustCompile(`^function/([a-zA-Z0-9_-]{1,64}):[0-9a-f]{16}$`)

// accountOf is tenantOf's inverse.
func (g *Globals) accountOf(tenant string) (account string, ok bool) {
	if tenant == g.Tenant {
		return usualAccount, true
	}
	return tenant, accounts.MatchString(tenant) && tenant != usualAccount
}

var accounts = regexp.MustCompile(`^[0-9]{12}$`)

// Each implements builder.Kept.
func (k kept) Each(ctx context.Context, f func(builder.Thing) error) error {
	o, err := origin.Open(ctx, k.g.Origin, originDrivers()...)
	if err != nil {
		return err
	}
	defer o.Close()
	roots, err := o.Roots(ctx)
	if err != nil {
		return err
	}
	for _, root := range roots {
		if err := mend(ctx, o, root.Name); err != nil {
			return err
		}
		err := k.tenants(ctx, o, "roots/"+root.Name+"/packages", func(tenant, account string) error {
			last := "" // whose pieces follow one another
			for info, err := range o.Packages(root.Name, tenant).List(ctx, "") {
				if err != nil {
					return err
				}
				pack, ok := parsePackage(info.Name)
				if !ok || pack.name == last {
					continue
				}
				last = pack.name
				if err := f(builder.Thing{ID: functions.ID{Account: account, Name: pack.function}, Key: root.Name + "/" + pack.name}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return k.tenants(ctx, o, "names", func(tenant, account string) error {
		for escaped, err := range o.Children(ctx, "names/"+tenant) {
			if err != nil {
				return err
			}
			name := strings.ReplaceAll(escaped, "!", "/")
			m := buildNames.FindStringSubmatch(name)
			if m == nil {
				continue
			}
			if err := f(builder.Thing{ID: functions.ID{Account: account, Name: m[1]}, Key: name}); err != nil {
				return err
			}
		}
		return nil
	})
}

// tenants calls f for those tenants below a key that are accounts'.
func (k kept) tenants(ctx context.Context, o *origin.Origin, key string, f func(tenant, account string) error) error {
	for tenant, err := range o.Children(ctx, key) {
		if err != nil {
			return err
		}
		if account, ok := k.g.accountOf(tenant); ok {
			if err := f(tenant, account); err != nil {
				return err
			}
		}
	}
	return nil
}

// mend puts back the manifests that a process was killed over. Names that nobody
// needs are still there, and take them away again.
func mend(ctx context.Context, o *origin.Origin, root string) error {
	for tenant, err := range o.Children(ctx, "roots/"+root+"/condemned") {
		if err != nil {
			return err
		}
		for info, err := range o.Condemned(root, tenant).List(ctx, "") {
			if err != nil {
				return err
			}
			if err := restore(ctx, o, root, tenant, info.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// restore puts a condemned manifest back, if it is missing.
func restore(ctx context.Context, o *origin.Origin, root, tenant, image string) error {
	data, err := o.Condemned(root, tenant).Get(ctx, image)
	if err == nil {
		_, err = o.Manifests(root, tenant).Put(ctx, image, data)
	}
	if err == nil {
		err = o.Condemned(root, tenant).Remove(ctx, image)
	}
	return err
}

// Remove implements builder.Kept.
func (k kept) Remove(ctx context.Context, things []builder.Thing) error {
	names := map[string]map[string]bool{} // by tenant
	for _, t := range things {
		tenant := k.g.tenantOf(t.Account)
		if !buildNames.MatchString(t.Key) {
			if err := (packages{k.g}).remove(ctx, tenant, t.Key); err != nil {
				return err
			}
			continue
		}
		if names[tenant] == nil {
			names[tenant] = map[string]bool{}
		}
		names[tenant][t.Key] = true
	}
	for tenant, dead := range names {
		if err := k.removeNames(ctx, tenant, dead); err != nil {
			return fmt.Errorf("tenant %s: %w", tenant, err)
		}
	}
	return nil
}

// removeNames removes names, after the images that have no others.
func (k kept) removeNames(ctx context.Context, tenant string, dead map[string]bool) error {
	s, err := k.g.forTenant(tenant).open(ctx, false)
	if err != nil {
		return err
	}
	defer s.Close()
	named, doomed, err := s.split(ctx, dead)
	if err != nil {
		return err
	}
	for image := range doomed {
		if named[image] {
			delete(doomed, image)
			continue
		}
		if err := s.condemn(ctx, tenant, image); err != nil {
			return err
		}
	}
	if len(doomed) > 0 {
		if named, _, err = s.split(ctx, dead); err != nil {
			return err
		}
	}
	for image := range doomed {
		if named[image] {
			err = restore(ctx, s.Origin, image.Root, tenant, image.Image)
		} else if err = s.RemoveTraces(ctx, image.Root, tenant, image.Image); err == nil { // they open with that manifest only
			err = s.Condemned(image.Root, tenant).Remove(ctx, image.Image)
		}
		if err != nil && !isNotFound(err) {
			return err
		}
	}
	for name := range dead {
		if err := s.names.Forget(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// place is where an image's manifest is.
type place struct{ Root, Image string }

// split gives the images that have a name that is not dead, and those of dead
// ones. As long as a name cannot be read it may be any image's: an error.
func (s *store) split(ctx context.Context, dead map[string]bool) (named, doomed map[place]bool, err error) {
	all, err := s.names.List(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("it may name an image that nothing else needs, so remove it first: %w", err)
	}
	named, doomed = map[place]bool{}, map[place]bool{}
	for _, r := range all {
		if dead[r.Name] {
			doomed[place{r.Root, r.Image}] = true
		} else {
			named[place{r.Root, r.Image}] = true
		}
	}
	return named, doomed, nil
}

// condemn removes a manifest, and leaves a copy. One that is missing is left so.
func (s *store) condemn(ctx context.Context, tenant string, image place) error {
	data, err := s.Manifests(image.Root, tenant).Get(ctx, image.Image)
	if errors.Is(err, origin.ErrNotFound) {
		return nil
	}
	if err == nil {
		_, err = s.Condemned(image.Root, tenant).Put(ctx, image.Image, data)
	}
	if err == nil {
		err = s.Manifests(image.Root, tenant).Remove(ctx, image.Image)
	}
	if errors.Is(err, origin.ErrNotFound) {
		return nil
	}
	return err
}
