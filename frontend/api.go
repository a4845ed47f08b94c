package frontend

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"thaw/events"
	"thaw/functions"
	"thaw/invokewire"
	"thaw/lambdaapi"
	"thaw/sigv4"
)

// maxClientContext is the longest client context, in base64: Lambda's.
const maxClientContext = 3583

// Handler serves the region.
func (f *Frontend) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requestID := newRequestID()
		w.Header().Set("X-Amzn-Requestid", requestID)
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		id, isURL := isURLHost(host)
		switch {
		case isURL:
			f.serveURL(w, r, id, requestID)
		case r.URL.Path == "/health":
			w.WriteHeader(http.StatusOK)
		case strings.HasPrefix(r.URL.Path, s3Path):
			f.serveS3(w, r, requestID)
		case strings.HasPrefix(r.Header.Get("X-Amz-Target"), logsTarget):
			f.serveLogs(w, r, requestID)
		default:
			f.serveLambda(w, r, requestID)
		}
	})
}

// newRequestID gives a random UUID.
func newRequestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// serveLambda answers the Lambda API.
func (f *Frontend) serveLambda(w http.ResponseWriter, r *http.Request, requestID string) {
	op, vars, err := lambdaapi.Route(r)
	if err != nil {
		lambdaapi.WriteError(w, requestID, err)
		return
	}
	switch op {
	case lambdaapi.OpInvoke, lambdaapi.OpInvokeWithResponseStream, lambdaapi.OpInvokeAsync:
		f.serveInvoke(w, r, call{op: op, vars: vars, requestID: requestID})
	default:
		f.serveControl(w, r, call{op: op, vars: vars, requestID: requestID})
	}
}

// serveControl answers the operations of control.
func (f *Frontend) serveControl(w http.ResponseWriter, r *http.Request, in call) {
	body, err := f.readControl(w, r)
	if err == nil {
		in.body = body
		in.account, err = f.authenticate(r, body, "lambda")
	}
	if err == nil {
		err = f.admit(in.account)
	}
	if err != nil {
		lambdaapi.WriteError(w, in.requestID, err)
		return
	}
	if r.Method != http.MethodGet {
		defer f.distrust(in)()
	}
	if !f.control.serve(w, r, in) {
		lambdaapi.WriteError(w, in.requestID, lambdaapi.UnknownOperationException.Errorf("%s is not offered here.", in.op))
	}
}

// distrust has the function of a change be read from the records, during and
// after it.
func (f *Frontend) distrust(in call) func() {
	n, err := functions.ParseName(in.vars["FunctionName"])
	if err != nil {
		return func() {}
	}
	id := functions.ID{Account: in.account, Name: n.Function}
	f.view.changed(id)
	return func() { f.view.changed(id) }
}

// readControl reads a body that may be as long as a zip package.
func (f *Frontend) readControl(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Now().Add(5 * bodyTime)) // servers of tests cannot
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	b, err := f.buffers.readAtMost(r, maxControl)
	if err != nil {
		return nil, bodyError(err, maxControl)
	}
	return b, nil
}

// authenticate tells whose request this is.
func (f *Frontend) authenticate(r *http.Request, body []byte, service string) (account string, err error) {
	who, err := f.verify(r, body, service, false)
	return who.Account, err
}

// verify tells who signed a request, in a header or in the query.
func (f *Frontend) verify(r *http.Request, body []byte, service string, presigned bool) (sigv4.Identity, error) {
	sum := sha256.Sum256(body)
	who, err := sigv4.Verify(r, hex.EncodeToString(sum[:]), sigv4.Options{
		Secret: f.secretFor(r), Region: f.options.Region, Service: service, Presigned: presigned, UnsignedPayload: presigned,
	})
	var refused *sigv4.Error
	if err != nil && !errors.As(err, &refused) {
		f.options.Log.Warn("access keys cannot be read", "error", err)
	}
	return who, err
}

// secretFor finds the keys that a request may be signed with.
func (f *Frontend) secretFor(r *http.Request) func(context.Context, string) (sigv4.Key, error) {
	return func(ctx context.Context, id string) (sigv4.Key, error) {
		if token := r.Header.Get("X-Amz-Security-Token"); token != "" {
			return f.sessions.find(id, token)
		}
		if token := r.URL.Query().Get("X-Amz-Security-Token"); token != "" {
			return f.sessions.find(id, token)
		}
		return f.options.Keys.find(ctx, id)
	}
}

// serveInvoke answers the operations that invoke.
func (f *Frontend) serveInvoke(w http.ResponseWriter, r *http.Request, in call) {
	limit := maxSync
	async := in.op == lambdaapi.OpInvokeAsync || strings.EqualFold(r.Header.Get("X-Amz-Invocation-Type"), "Event")
	if async {
		limit = maxAsync
	}
	payload, err := f.buffers.readBody(w, r, limit)
	if err != nil {
		lambdaapi.WriteError(w, in.requestID, bodyError(err, limit))
		return
	}
	inv := &invocation{payload: payload, requestID: in.requestID}
	defer func() {
		if inv.payload != nil { // else it has become the answer
			f.buffers.put(inv.payload)
		}
	}()
	kind, err := f.prepare(r, &in, inv)
	if err != nil {
		lambdaapi.WriteError(w, in.requestID, err)
		return
	}
	switch {
	case kind == kindDryRun:
		w.WriteHeader(http.StatusNoContent)
	case async:
		f.accept(w, r, in, inv)
	case in.op == lambdaapi.OpInvokeWithResponseStream:
		f.stream(w, r, inv)
	default:
		f.answer(w, r, inv)
	}
}

// bodyError is for a body that could not be read.
func bodyError(err error, limit int) error {
	if errors.Is(err, errTooLong) {
		return lambdaapi.RequestTooLargeException.Errorf("Request must be smaller than %d bytes for the %s operation", limit, operationFor(limit))
	}
	return lambdaapi.SerializationException.Errorf("The request's body did not arrive whole, or in time.")
}

func operationFor(limit int) string {
	switch limit {
	case maxSync:
		return "InvokeFunction"
	case maxAsync:
		return "InvokeAsync"
	}
	return "CreateFunction"
}

// Kinds of invokes.
const (
	kindSync   = "RequestResponse"
	kindEvent  = "Event"
	kindDryRun = "DryRun"
)

// prepare checks a request, and finds what it invokes.
func (f *Frontend) prepare(r *http.Request, in *call, inv *invocation) (kind string, err error) {
	if in.account, err = f.authenticate(r, inv.payload.b, "lambda"); err != nil {
		return "", err
	}
	name, kind, err := f.readInvoke(r, in, inv)
	if err != nil {
		return "", err
	}
	inv.arn = name.ARN(f.options.Region)
	function, t, err := f.view.find(r.Context(), name.ID(), name.Qualifier, f.spec)
	if err != nil {
		return "", noFunction(err, inv.arn)
	}
	inv.target, inv.reserved = t, function.Reserved
	in.vars["FunctionName"], in.vars["Qualifier"] = name.Function, name.Qualifier
	if kind == kindDryRun {
		return kind, nil
	}
	if err := invocable(t.version); err != nil {
		return "", err
	}
	if len(inv.payload.b) == 0 {
		inv.payload.b = append(inv.payload.b, "{}"...) // what functions get from Lambda
	}
	return kind, checkJSON(inv.payload.b)
}

// noFunction gives the message the name as clients know it.
func noFunction(err error, arn string) error {
	if errors.Is(err, functions.ErrNotFound) {
		return lambdaapi.ResourceNotFoundException.Errorf("Function not found: %s", arn)
	}
	return err
}

// readInvoke reads what the three operations have in common.
func (f *Frontend) readInvoke(r *http.Request, in *call, inv *invocation) (functions.Name, string, error) {
	h := r.Header
	kind := h.Get("X-Amz-Invocation-Type")
	switch {
	case in.op == lambdaapi.OpInvokeAsync:
		kind = kindEvent
	case kind == "":
		kind = kindSync
	case kind != kindSync && kind != kindDryRun && (kind != kindEvent || in.op == lambdaapi.OpInvokeWithResponseStream):
		return functions.Name{}, "", invalid(kind, "invocationType", "Member must satisfy enum value set: [Event, RequestResponse, DryRun]")
	}
	switch logType := h.Get("X-Amz-Log-Type"); logType {
	case "", "None":
	case "Tail":
		inv.tail = kind == kindSync
	default:
		return functions.Name{}, "", invalid(logType, "logType", "Member must satisfy enum value set: [None, Tail]")
	}
	inv.trace = h.Get("X-Amzn-Trace-Id")
	if len(inv.trace) > 512 {
		inv.trace = ""
	}
	if inv.clientContext = h.Get("X-Amz-Client-Context"); inv.clientContext != "" {
		if err := checkContext(inv.clientContext); err != nil {
			return functions.Name{}, "", err
		}
	}
	name, err := functions.ParseName(in.vars["FunctionName"])
	if err == nil {
		name, err = name.In(in.account, f.options.Region, r.URL.Query().Get("Qualifier"))
	}
	return name, kind, err
}

func invalid(value, member, constraint string) error {
	if len(value) > 128 {
		value = value[:128]
	}
	return lambdaapi.ValidationException.Errorf("1 validation error detected: Value '%s' at '%s' failed to satisfy constraint: %s", strings.ToValidUTF8(value, "?"), member, constraint)
}

// checkContext holds a client context to its limits.
func checkContext(text string) error {
	if len(text) > maxClientContext {
		return lambdaapi.InvalidParameterValueException.Errorf("Client context must be smaller than %d bytes.", maxClientContext)
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || !json.Valid(b) {
		return lambdaapi.InvalidRequestContentException.Errorf("Client context must be a valid Base64-encoded JSON object.")
	}
	return nil
}

// checkJSON refuses a payload that is no JSON, and says where.
func checkJSON(payload []byte) error {
	if json.Valid(payload) && utf8.Valid(payload) {
		return nil
	}
	var raw json.RawMessage
	why := "Invalid UTF-8"
	if err := json.Unmarshal(payload, &raw); err != nil {
		why = err.Error()
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			why += " at offset " + strconv.FormatInt(syntax.Offset, 10)
		}
	}
	return lambdaapi.InvalidRequestContentException.Errorf("Could not parse request body into json: Could not parse payload into json: %s", why)
}

// invocable refuses what cannot be invoked yet, or ever.
func invocable(v *functions.Version) error {
	switch {
	case v.State == functions.Pending:
		return lambdaapi.ResourceConflictException.Errorf("The operation cannot be performed at this time. The function is currently in the following state: Pending")
	case v.State == functions.Active && v.Package.Image != "":
		return nil
	case v.StateReason != "":
		return lambdaapi.ResourceNotReadyException.Errorf("The function is currently in the following state: %s: %s", v.State, v.StateReason)
	}
	return lambdaapi.ResourceNotReadyException.Errorf("The function is currently in the following state: %s", v.State)
}

// accept queues an event.
func (f *Frontend) accept(w http.ResponseWriter, r *http.Request, in call, inv *invocation) {
	err := f.options.Queue.Put(r.Context(), events.Event{
		ID: in.requestID, Account: in.account, Function: in.vars["FunctionName"], Qualifier: in.vars["Qualifier"],
		Payload: inv.payload.b, ClientContext: inv.clientContext, Trace: inv.trace,
	})
	if err != nil {
		lambdaapi.WriteError(w, in.requestID, f.queueError(err))
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

func (f *Frontend) queueError(err error) error {
	if errors.Is(err, events.ErrFull) {
		return throttled(&invokewire.Throttle{Reason: invokewire.ReasonRate, RetryAfter: systemRetry})
	}
	f.options.Log.Warn("an event was not accepted", "error", err)
	return lambdaapi.ServiceException.Errorf("The event could not be queued.")
}

// answer runs a synchronous invoke.
func (f *Frontend) answer(w http.ResponseWriter, r *http.Request, inv *invocation) {
	// The client may hang up: the function goes on.
	o, err := f.invokeWhole(context.WithoutCancel(r.Context()), inv)
	if err != nil {
		lambdaapi.WriteError(w, inv.requestID, err)
		return
	}
	defer f.buffers.put(o.body)
	h := w.Header()
	h.Set("X-Amz-Executed-Version", inv.target.version.Number)
	h.Set("Content-Type", "application/json")
	if o.failed {
		h.Set("X-Amz-Function-Error", "Unhandled")
	}
	if inv.tail && o.tail != "" {
		h.Set("X-Amz-Log-Result", o.tail)
	}
	h.Set("Content-Length", strconv.Itoa(len(o.body.b)))
	w.WriteHeader(http.StatusOK)
	f.write(w, o.body.b)
}

// write sends an answer, for which a client has as long as for a request.
func (f *Frontend) write(w http.ResponseWriter, b []byte) {
	c := http.NewResponseController(w)
	_ = c.SetWriteDeadline(time.Now().Add(bodyTime)) // servers of tests cannot
	_, _ = w.Write(b)                                // the client has gone
	_ = c.Flush()
	_ = c.SetWriteDeadline(time.Time{})
}

// spec is all that workers need of a version, but for keys.
func (f *Frontend) spec(ctx context.Context, fn *functions.Function, v *functions.Version) (s invokewire.Spec, err error) {
	s = specOf(fn, v, f.options.Region)
	s.Tenant, s.Egress, s.Endpoint = f.options.Tenant(fn.Account), !f.options.NoNetwork, f.options.Inside
	if s.Env, err = f.control.secrets.open(ctx, fn.ID, v.Env); err != nil {
		f.options.Log.Warn("frontend: a function cannot be invoked: its variables cannot be opened", "function", fn.ID, "error", err)
		return s, unopened(err)
	}
	return s, nil
}
