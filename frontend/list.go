package frontend

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strconv"
	"strings"

	"thaw/functions"
	"thaw/lambdaapi"
)

// mostItems is how many items an answer has at most, whatever was asked for, as AWS has it.
const mostItems = 50

// limit gives how many items an answer has.
func limit(asked *int) int {
	if n := value(asked); n > 0 && n < mostItems {
		return n
	}
	return mostItems
}

// page cuts those keys that a request asks for out of all, which are in order,
// and gives the marker of what follows.
func page(keys []string, marker *string, asked *int) (out []string, next *string, err error) {
	from := 0
	if value(marker) != "" {
		after, err := unmark(*marker)
		if err != nil {
			return nil, nil, err
		}
		for from < len(keys) && keys[from] != after {
			from++
		}
		from = min(from+1, len(keys)) // of a key that has gone: nothing more
	}
	to := min(from+limit(asked), len(keys))
	if to < len(keys) {
		next = mark(keys[to-1])
	}
	return keys[from:to], next, nil
}

// mark and unmark keep what a marker holds out of clients' sight.
func mark(key string) *string { return new(base64.RawURLEncoding.EncodeToString([]byte(key))) }

func unmark(marker string) (string, error) {
	key, err := base64.RawURLEncoding.DecodeString(marker)
	if err != nil || len(key) == 0 || len(key) > 256 {
		return "", refuse("Invalid marker: pass NextMarker on as it is.")
	}
	return string(key), nil
}

// listFunctions lists the caller's functions in the order of their names; with
// FunctionVersion ALL, each with its published versions.
func (c *control) listFunctions(ctx context.Context, in call, q *lambdaapi.ListFunctionsRequest) (*lambdaapi.ListFunctionsResponse, error) {
	if q.FunctionVersion != nil {
		return c.listAll(ctx, in, q)
	}
	after := ""
	if value(q.Marker) != "" {
		var err error
		if after, err = unmark(*q.Marker); err != nil {
			return nil, err
		}
	}
	all, more, err := c.store.List(ctx, in.account, after, limit(q.MaxItems))
	if err != nil {
		return nil, err
	}
	out := &lambdaapi.ListFunctionsResponse{Functions: []lambdaapi.FunctionConfiguration{}}
	for _, f := range all {
		if f.Damaged != nil {
			out.Functions = append(out.Functions, c.wrecked(f.ID, "", f.Damaged))
			continue
		}
		out.Functions = append(out.Functions, c.listed(ctx, f.ID, "", &f.Latest))
	}
	if more != "" {
		out.NextMarker = mark(more)
	}
	return out, nil
}

// wrecked is listed for a function, or a published version, whose record is
// damaged: it says so, where others have no state.
func (c *control) wrecked(id functions.ID, number string, why error) lambdaapi.FunctionConfiguration {
	return lambdaapi.FunctionConfiguration{
		FunctionName: new(id.Name), FunctionArn: new(id.ARN(c.region, number)), Version: new(cmp.Or(number, functions.Latest)),
		State: new(functions.Failed), StateReason: new("The " + why.Error() + "."), StateReasonCode: new("InternalError"),
	}
}

// listAll lists versions; a marker is the last one's name and number. Functions
// are read a page at a time.
func (c *control) listAll(ctx context.Context, in call, q *lambdaapi.ListFunctionsRequest) (*lambdaapi.ListFunctionsResponse, error) {
	name, number := "", ""
	if value(q.Marker) != "" {
		after, err := unmark(*q.Marker)
		if err != nil {
			return nil, err
		}
		name, number, _ = strings.Cut(after, ":")
	}
	out, last := &lambdaapi.ListFunctionsResponse{Functions: []lambdaapi.FunctionConfiguration{}}, ""
	add := func(f *functions.Function, numbers []string) (full bool, err error) {
		for _, n := range numbers {
			if len(out.Functions) == limit(q.MaxItems) {
				out.NextMarker = mark(last)
				return true, nil
			}
			if f.Damaged != nil {
				out.Functions = append(out.Functions, c.wrecked(f.ID, "", f.Damaged))
			} else if out.Functions, err = c.appendVersion(ctx, out.Functions, f, n); err != nil {
				return true, err
			}
			last = f.Name + ":" + n
		}
		return false, nil
	}
	if name != "" {
		if f, err := c.store.Get(ctx, functions.ID{Account: in.account, Name: name}); err == nil { // else there is no more of it
			if full, err := add(f, versionsAfter(f, number)); full || err != nil {
				return out, err
			}
		}
	}
	for more := true; more; {
		page, next, err := c.store.List(ctx, in.account, name, mostItems)
		if err != nil {
			return nil, err
		}
		for _, f := range page {
			if full, err := add(f, versionsOf(f)); full || err != nil {
				return out, err
			}
		}
		name, more = next, next != ""
	}
	return out, nil
}

// versionsAfter lists the versions that come after one.
func versionsAfter(f *functions.Function, number string) []string {
	at, _ := strconv.Atoi(number) // of $LATEST: 0
	return slices.DeleteFunc(f.Numbers(), func(n string) bool {
		v, _ := strconv.Atoi(n)
		return v <= at
	})
}

// versionsOf lists $LATEST and what was published.
func versionsOf(f *functions.Function) []string {
	return append([]string{functions.Latest}, f.Numbers()...)
}

// appendVersion adds a version to a list, unless it has been deleted meanwhile.
func (c *control) appendVersion(ctx context.Context, to []lambdaapi.FunctionConfiguration, f *functions.Function, number string) ([]lambdaapi.FunctionConfiguration, error) {
	v, err := c.store.Version(ctx, f, number)
	switch {
	case errors.Is(err, functions.ErrNotFound):
		return to, nil
	case errors.Is(err, functions.ErrDamaged):
		return append(to, c.wrecked(f.ID, number, err)), nil
	case err != nil:
		return to, err
	}
	return append(to, c.listed(ctx, f.ID, number, v)), nil
}

// listVersions lists $LATEST and the published versions of one function.
func (c *control) listVersions(ctx context.Context, in call, q *lambdaapi.ListVersionsByFunctionRequest) (*lambdaapi.ListVersionsByFunctionResponse, error) {
	f, err := c.findBare(ctx, in, q.FunctionName)
	if err != nil {
		return nil, err
	}
	numbers, next, err := page(versionsOf(f), q.Marker, q.MaxItems)
	if err != nil {
		return nil, err
	}
	out := &lambdaapi.ListVersionsByFunctionResponse{Versions: []lambdaapi.FunctionConfiguration{}, NextMarker: next}
	for _, number := range numbers {
		if out.Versions, err = c.appendVersion(ctx, out.Versions, f, number); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Sizes of an account's code in bytes, as AWS gives them.
const mostCode = 80530636800

// getAccountSettings tells limits and use. Of zips it counts $LATEST; images are
// not counted, as on AWS.
func (c *control) getAccountSettings(ctx context.Context, in call, _ *lambdaapi.GetAccountSettingsRequest) (*lambdaapi.GetAccountSettingsResponse, error) {
	count, size, err := c.sum(ctx, in.account)
	if err != nil {
		return nil, err
	}
	total, unreserved, err := c.store.Concurrency(ctx, in.account)
	if err != nil {
		return nil, err
	}
	return &lambdaapi.GetAccountSettingsResponse{
		AccountLimit: &lambdaapi.AccountLimit{
			CodeSizeUnzipped: new(mostUnzipped), CodeSizeZipped: new(mostZipped), TotalCodeSize: new(mostCode),
			ConcurrentExecutions: new(total), UnreservedConcurrentExecutions: new(unreserved),
		},
		AccountUsage: &lambdaapi.AccountUsage{FunctionCount: new(count), TotalCodeSize: new(size)},
	}, nil
}

// pageAtHand is how many functions are read at a time where all are: a record has
// 1.5 MiB at most, and some 2 KiB usually.
const pageAtHand = 200

// sum counts an account's functions, and the bytes of their packages.
func (c *control) sum(ctx context.Context, account string) (count, size int, err error) {
	for after, more := "", true; more; more = after != "" {
		var page []*functions.Function
		if page, after, err = c.store.List(ctx, account, after, pageAtHand); err != nil {
			return 0, 0, err
		}
		count += len(page)
		for _, f := range page {
			if f.Damaged == nil && packageType(&f.Latest) == packageZip {
				size += int(f.Latest.CodeSize)
			}
		}
	}
	return count, size, nil
}
