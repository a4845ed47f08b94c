package frontend

import (
	"context"
	"net/http"
	"time"

	"thaw/functions"
	"thaw/lambdaapi"
)

// control answers the operations that create, change and read functions, but
// for invokes. It is safe for concurrent use.
type control struct {
	store  *functions.Store
	region string
	// urls makes the address of a function URL of its id.
	urls     func(id string) string
	packages Packages
	// runtimes are the names that zip packages may ask for.
	runtimes []string
	now      func() time.Time
}

// Packages keeps zip packages until they have been built.
type Packages interface {
	// Put keeps a package, of which sha256 is the digest in hex, and gives the
	// key under which a builder finds it. Putting one again changes nothing.
	Put(ctx context.Context, account, sha256 string, data []byte) (key string, err error)
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
	answer, ok := c.operations()[in.op]
	if !ok {
		return false
	}
	out, err := answer(r, in)
	if err != nil {
		lambdaapi.WriteError(w, in.requestID, err)
		return true
	}
	_ = lambdaapi.Write(w, in.requestID, in.op, out) // the client has gone
	return true
}

// answering makes an operation of a method with the operation's own shapes.
type answering func(r *http.Request, in call) (out any, err error)

func (c *control) operations() map[lambdaapi.Op]answering {
	return map[lambdaapi.Op]answering{}
}
