package frontend

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"thaw/functions"
	"thaw/lambdaapi"
)

// control answers the operations that create, change and read functions, but
// for invokes. It is safe for concurrent use. newControl makes it ready.
type control struct {
	store   *functions.Store
	secrets *secrets
	region  string
	// urls makes the address of a function URL of its id.
	urls     func(id string) string
	packages Packages
	objects  func(ctx context.Context, bucket, key, version string) (body io.ReadCloser, size int64, err error)
	scratch  string        // folder of packages from S3 until they are kept
	fetching chan struct{} // has an element for each of them
	// runtimes are the names that zip packages may ask for.
	runtimes []string
	now      func() time.Time
	answers  map[lambdaapi.Op]answering
}

// newControl makes a control of one that has all but its answers.
func newControl(c control) *control {
	c.fetching = make(chan struct{}, fetches)
	c.answers = c.operations()
	return &c
}

// Packages keeps zip packages until they have been built.
type Packages interface {
	// Put keeps a package for a function, of which sha256 is the digest in hex, and
	// gives the key, a new one each time, under which a builder finds it. What no
	// version refers to is removed after a while, and so is what an error left. It
	// holds but a part of it in memory.
	Put(ctx context.Context, id functions.ID, sha256 string, data *io.SectionReader) (key string, err error)
}

// call is a request whose signature has been checked.
type call struct {
	op        lambdaapi.Op
	vars      lambdaapi.Vars
	body      []byte // whole
	account   string // of the caller
	requestID string
}

// serve answers a request, and tells whether its operation is one of control.
func (c *control) serve(w http.ResponseWriter, r *http.Request, in call) (handled bool) {
	answer, ok := c.answers[in.op]
	if !ok {
		return false
	}
	out, err := answer(r, in)
	if err != nil {
		lambdaapi.WriteError(w, in.requestID, err)
		return true
	}
	_ = lambdaapi.Write(w, in.requestID, in.op, out) // else the client has gone
	return true
}

// answering answers one operation: with its output, or nil if it has none.
type answering func(r *http.Request, in call) (out any, err error)

// with makes an answering of what takes the operation's own input.
func with[In, Out any](do func(context.Context, call, *In) (Out, error)) answering {
	return func(r *http.Request, in call) (any, error) {
		q, err := lambdaapi.Decode[In](r, in.vars, in.body)
		if err != nil {
			return nil, err
		}
		return do(r.Context(), in, q)
	}
}

func (c *control) operations() map[lambdaapi.Op]answering {
	return map[lambdaapi.Op]answering{
		lambdaapi.OpCreateFunction:              with(c.createFunction),
		lambdaapi.OpGetFunction:                 with(c.getFunction),
		lambdaapi.OpGetFunctionConfiguration:    with(c.getFunctionConfiguration),
		lambdaapi.OpListFunctions:               with(c.listFunctions),
		lambdaapi.OpUpdateFunctionCode:          with(c.updateFunctionCode),
		lambdaapi.OpUpdateFunctionConfiguration: with(c.updateFunctionConfiguration),
		lambdaapi.OpDeleteFunction:              with(c.deleteFunction),
		lambdaapi.OpPublishVersion:              with(c.publishVersion),
		lambdaapi.OpListVersionsByFunction:      with(c.listVersions),

		lambdaapi.OpCreateAlias: with(c.createAlias),
		lambdaapi.OpGetAlias:    with(c.getAlias),
		lambdaapi.OpUpdateAlias: with(c.updateAlias),
		lambdaapi.OpDeleteAlias: with(c.deleteAlias),
		lambdaapi.OpListAliases: with(c.listAliases),

		lambdaapi.OpPutFunctionConcurrency:             with(c.putConcurrency),
		lambdaapi.OpGetFunctionConcurrency:             with(c.getConcurrency),
		lambdaapi.OpDeleteFunctionConcurrency:          with(c.deleteConcurrency),
		lambdaapi.OpPutProvisionedConcurrencyConfig:    with(c.putProvisioned),
		lambdaapi.OpGetProvisionedConcurrencyConfig:    with(c.getProvisioned),
		lambdaapi.OpDeleteProvisionedConcurrencyConfig: with(c.deleteProvisioned),
		lambdaapi.OpListProvisionedConcurrencyConfigs:  with(c.listProvisioned),

		lambdaapi.OpPutFunctionEventInvokeConfig:    with(c.putEventConfig),
		lambdaapi.OpUpdateFunctionEventInvokeConfig: with(c.updateEventConfig),
		lambdaapi.OpGetFunctionEventInvokeConfig:    with(c.getEventConfig),
		lambdaapi.OpDeleteFunctionEventInvokeConfig: with(c.deleteEventConfig),
		lambdaapi.OpListFunctionEventInvokeConfigs:  with(c.listEventConfigs),

		lambdaapi.OpTagResource:        with(c.tagResource),
		lambdaapi.OpUntagResource:      with(c.untagResource),
		lambdaapi.OpListTags:           with(c.listTags),
		lambdaapi.OpAddPermission:      with(c.addPermission),
		lambdaapi.OpGetPolicy:          with(c.getPolicy),
		lambdaapi.OpRemovePermission:   with(c.removePermission),
		lambdaapi.OpGetAccountSettings: with(c.getAccountSettings),

		lambdaapi.OpCreateFunctionUrlConfig: with(c.createURL),
		lambdaapi.OpGetFunctionUrlConfig:    with(c.getURL),
		lambdaapi.OpUpdateFunctionUrlConfig: with(c.updateURL),
		lambdaapi.OpDeleteFunctionUrlConfig: with(c.deleteURL),
		lambdaapi.OpListFunctionUrlConfigs:  with(c.listURLs),

		lambdaapi.OpGetRuntimeManagementConfig: with(c.getRuntimeManagement),
		lambdaapi.OpPutRuntimeManagementConfig: with(c.putRuntimeManagement),
		lambdaapi.OpGetFunctionRecursionConfig: with(c.getRecursion),
		lambdaapi.OpPutFunctionRecursionConfig: with(c.putRecursion),

		lambdaapi.OpGetFunctionCodeSigningConfig:     with(c.getFunctionSigning),
		lambdaapi.OpPutFunctionCodeSigningConfig:     with(c.putFunctionSigning),
		lambdaapi.OpDeleteFunctionCodeSigningConfig:  with(c.deleteFunctionSigning),
		lambdaapi.OpCreateCodeSigningConfig:          with(c.createSigning),
		lambdaapi.OpGetCodeSigningConfig:             with(c.getSigning),
		lambdaapi.OpUpdateCodeSigningConfig:          with(c.updateSigning),
		lambdaapi.OpDeleteCodeSigningConfig:          with(c.deleteSigning),
		lambdaapi.OpListCodeSigningConfigs:           with(c.listSigning),
		lambdaapi.OpListFunctionsByCodeSigningConfig: with(c.listFunctionsBySigning),

		lambdaapi.OpCreateEventSourceMapping: with(c.createMapping),
		lambdaapi.OpGetEventSourceMapping:    with(c.getMapping),
		lambdaapi.OpUpdateEventSourceMapping: with(c.updateMapping),
		lambdaapi.OpDeleteEventSourceMapping: with(c.deleteMapping),
		lambdaapi.OpListEventSourceMappings:  with(c.listMappings),
	}
}

// none is the output of operations that have none.
type none = any

// name reads which function a request is about, and of which qualifier.
func (c *control) name(in call, function string, qualifier *string) (functions.Name, error) {
	n, err := functions.ParseName(function)
	if err != nil {
		return n, err
	}
	return n.In(in.account, c.region, value(qualifier))
}

// bare is name for operations that have no business with a qualifier.
func (c *control) bare(in call, function string) (functions.Name, error) {
	n, err := c.name(in, function, nil)
	if err == nil && n.Qualifier != "" {
		err = lambdaapi.InvalidParameterValueException.Errorf("This operation is permitted on Lambda functions only. " +
			"Aliases and versions do not support this operation. Please specify either a function name or an unqualified function ARN.")
	}
	return n, err
}

// find reads the function of a name; if there is none, the error says so of the
// name as it is.
func (c *control) find(ctx context.Context, n functions.Name) (*functions.Function, error) {
	f, err := c.store.Get(ctx, n.ID())
	return f, instead(err, "Function not found: %s", n.ARN(c.region))
}

// findBare is bare, and find.
func (c *control) findBare(ctx context.Context, in call, function string) (*functions.Function, error) {
	n, err := c.bare(in, function)
	if err != nil {
		return nil, err
	}
	return c.find(ctx, n)
}

// qualified is name, find, and the version that the qualifier stands for.
func (c *control) qualified(ctx context.Context, in call, function string, qualifier *string) (functions.Name, *functions.Function, *functions.Version, error) {
	n, err := c.name(in, function, qualifier)
	if err != nil {
		return n, nil, nil, err
	}
	f, err := c.find(ctx, n)
	if err != nil {
		return n, nil, nil, err
	}
	v, err := c.version(ctx, f, n)
	return n, f, v, err
}

// change updates the function of a name.
func (c *control) change(ctx context.Context, n functions.Name, change func(*functions.Function) error) (*functions.Function, error) {
	f, err := c.store.Update(ctx, n.ID(), change)
	return f, instead(err, "Function not found: %s", n.ARN(c.region))
}

// version finds what a qualifier stands for; of an alias, its first version.
func (c *control) version(ctx context.Context, f *functions.Function, n functions.Name) (*functions.Version, error) {
	number := n.Qualifier
	if a, ok := f.Aliases[number]; ok {
		number = a.Version
	}
	if number == "" {
		number = functions.Latest
	}
	v, err := c.store.Version(ctx, f, number)
	return v, instead(err, "Function not found: %s", n.ARN(c.region))
}

// has refuses a qualifier that is neither a version nor an alias of the function.
func (c *control) has(f *functions.Function, n functions.Name) error {
	if n.Qualifier == "" || n.Qualifier == functions.Latest {
		return nil
	}
	_, alias := f.Aliases[n.Qualifier]
	_, version := f.Versions[n.Qualifier]
	switch {
	case alias || version:
		return nil
	case isNumber(n.Qualifier) || !isName(n.Qualifier):
		return notFound("Function not found: %s", n.ARN(c.region))
	}
	return notFound("Cannot find alias arn: %s", n.ARN(c.region))
}

// instead gives another message to a store's error that there is no function.
func instead(err error, format string, args ...any) error {
	if errors.Is(err, functions.ErrNotFound) {
		return notFound(format, args...)
	}
	return err
}

func notFound(format string, args ...any) error {
	return lambdaapi.ResourceNotFoundException.Errorf(format, args...)
}

func refuse(format string, args ...any) error {
	return lambdaapi.InvalidParameterValueException.Errorf(format, args...)
}

// checkRevision refuses a client's RevisionId, unless it is missing or the current one.
func checkRevision(given *string, current, where string) error {
	if value(given) == "" || *given == current {
		return nil
	}
	return lambdaapi.PreconditionFailedException.Errorf("The Revision Id provided does not match the latest Revision Id. "+
		"Call the %s API to retrieve the latest Revision Id", where)
}

// Where a client finds the latest RevisionId.
const (
	byFunction = "GetFunction/GetAlias"
	byPolicy   = "GetPolicy"
)

// value gives what a member holds, or the zero value if it is not there.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// some gives a text's address, or nil if it is empty.
func some(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
