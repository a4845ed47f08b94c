package frontend

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"thaw/functions"
	"thaw/invokewire"
	"thaw/lambdaapi"
	"thaw/sigv4"
)

const (
	// preludeType is what a function gives as its answer's type if the answer
	// begins with status and headers, as JSON, and eight zero bytes.
	preludeType = "application/vnd.awslambda.http-integration-response"
	// preludeEnd is between that JSON and the body.
	preludeEnd = "\x00\x00\x00\x00\x00\x00\x00\x00"
	// maxPrelude bounds it: as much as headers may take.
	maxPrelude = 64 << 10
	// forbiddenURL is AWS's answer to who may not invoke a URL.
	forbiddenURL = `{"Message":"Forbidden. For troubleshooting Function URL authorization issues, see: https://docs.aws.amazon.com/lambda/latest/dg/urls-auth.html"}`
	// unknownURL is for a host name that leads nowhere.
	unknownURL = `{"Message":null}`
	// streamed is the mode in which answers are passed on as they come.
	streamed = "RESPONSE_STREAM"
)

// urlEvent is what a function gets that is invoked by its URL: version 2.0.
type urlEvent struct {
	Version        string            `json:"version"`
	RouteKey       string            `json:"routeKey"`
	RawPath        string            `json:"rawPath"`
	RawQueryString string            `json:"rawQueryString"`
	Cookies        []string          `json:"cookies,omitempty"`
	Headers        map[string]string `json:"headers"`
	Query          map[string]string `json:"queryStringParameters,omitempty"`
	Context        urlContext        `json:"requestContext"`
	Body           string            `json:"body,omitempty"`
	Base64         bool              `json:"isBase64Encoded"`
}

type urlContext struct {
	AccountID    string         `json:"accountId"`
	APIID        string         `json:"apiId"`
	Authorizer   *urlAuthorizer `json:"authorizer,omitempty"`
	DomainName   string         `json:"domainName"`
	DomainPrefix string         `json:"domainPrefix"`
	HTTP         urlHTTP        `json:"http"`
	RequestID    string         `json:"requestId"`
	RouteKey     string         `json:"routeKey"`
	Stage        string         `json:"stage"`
	Time         string         `json:"time"`
	TimeEpoch    int64          `json:"timeEpoch"`
}

type urlAuthorizer struct {
	IAM struct {
		AccessKey string `json:"accessKey"`
		AccountID string `json:"accountId"`
		CallerID  string `json:"callerId"`
		UserARN   string `json:"userArn"`
		UserID    string `json:"userId"`
	} `json:"iam"`
}

type urlHTTP struct {
	Method    string `json:"method"`
	Path      string `json:"path"`
	Protocol  string `json:"protocol"`
	SourceIP  string `json:"sourceIp"`
	UserAgent string `json:"userAgent"`
}

// serveURL invokes a function by its own address.
func (f *Frontend) serveURL(w http.ResponseWriter, r *http.Request, id, requestID string) {
	ref, ok := f.view.url(r.Context(), id)
	if !ok {
		sayURL(w, http.StatusForbidden, unknownURL)
		return
	}
	fn, t, err := f.view.find(r.Context(), ref.id, ref.alias, f.spec)
	if err != nil {
		sayURL(w, http.StatusForbidden, unknownURL)
		return
	}
	config := fn.URLs[ref.alias]
	if cors(w.Header(), r, config.Cors) {
		w.WriteHeader(http.StatusOK)
		return
	}
	body, err := f.buffers.readBody(w, r, maxSync)
	if err != nil {
		sayURL(w, http.StatusRequestEntityTooLarge, `{"Message":"Request must be smaller than 6291456 bytes for the InvokeFunction operation"}`)
		return
	}
	defer func() { f.buffers.put(body) }()
	who, err := f.mayCall(r, body.b, fn, ref.alias)
	if err != nil {
		sayURL(w, http.StatusForbidden, forbiddenURL)
		return
	}
	if invocable(t.version) != nil {
		sayURL(w, http.StatusBadGateway, `{"Message":"Internal Server Error"}`)
		return
	}
	inv := &invocation{target: t, reserved: fn.Reserved, requestID: requestID, arn: ref.id.ARN(f.options.Region, ref.alias), trace: r.Header.Get("X-Amzn-Trace-Id")}
	event, err := json.Marshal(eventOf(r, body.b, urlCall{id, requestID, ref.id.Account, who}))
	if err != nil || len(event) > maxAnswer {
		sayURL(w, http.StatusRequestEntityTooLarge, `{"Message":"Request Entity Too Large"}`)
		return
	}
	inv.payload, body = body, f.buffers.get() // its bytes are in the event
	if err := f.load(r.Context(), inv.payload, event); err == nil {
		f.callURL(w, r, inv, config.Mode)
	}
	if inv.payload != nil {
		f.buffers.put(inv.payload)
	}
}

func sayURL(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) // the client has gone
}

// callURL invokes, and answers.
func (f *Frontend) callURL(w http.ResponseWriter, r *http.Request, inv *invocation, mode string) {
	ctx := context.WithoutCancel(r.Context())      // the client may hang up: the function goes on
	if mode == streamed && !r.ProtoAtLeast(1, 1) { // where an answer that is cut off looks whole
		sayURL(w, http.StatusHTTPVersionNotSupported, `{"Message":"Answers are streamed over HTTP/1.1"}`)
		return
	}
	if mode == streamed {
		f.streamURL(ctx, w, inv)
		return
	}
	o, err := f.invokeWhole(ctx, inv)
	if err != nil {
		failURL(w, err)
		return
	}
	defer f.buffers.put(o.body)
	if o.failed {
		sayURL(w, http.StatusBadGateway, "Internal Server Error")
		return
	}
	writeURL(w, readURLAnswer(o.body.b))
}

// failURL tells of an invoke that the platform could not make.
func failURL(w http.ResponseWriter, err error) {
	var e *lambdaapi.Error
	if errors.As(err, &e) && e.Kind == lambdaapi.TooManyRequestsException {
		w.Header().Set("Retry-After", strconv.Itoa(int(e.RetryAfter/time.Second)+1))
		sayURL(w, http.StatusTooManyRequests, `{"Message":"Rate Exceeded."}`)
		return
	}
	sayURL(w, http.StatusBadGateway, `{"Message":"Internal Server Error"}`)
}

// mayCall tells who calls, or that they may not. A nil authorizer is anybody.
func (f *Frontend) mayCall(r *http.Request, body []byte, fn *functions.Function, alias string) (*urlAuthorizer, error) {
	config := fn.URLs[alias]
	if config.Auth != "AWS_IAM" {
		if !allowed(fn.Policies[alias], func(s functions.Statement) bool {
			return s.Action == "lambda:InvokeFunctionUrl" && s.Principal == "*" && (s.URLAuth == "" || s.URLAuth == "NONE")
		}) {
			return nil, errors.New("no statement of its policy lets anybody call the URL")
		}
		return nil, nil
	}
	who, err := f.verify(r, body, "lambda", r.URL.Query().Has("X-Amz-Signature"))
	if err != nil {
		return nil, err
	}
	if who.Account != fn.Account && !allowed(fn.Policies[alias], func(s functions.Statement) bool {
		return s.Action == "lambda:InvokeFunctionUrl" && (s.URLAuth == "" || s.URLAuth == "AWS_IAM") &&
			slices.Contains([]string{"*", who.Account, "arn:aws:iam::" + who.Account + ":root"}, s.Principal)
	}) {
		return nil, errors.New("the caller's account is not allowed by its policy")
	}
	return authorizerOf(who), nil
}

func allowed(policy []functions.Statement, match func(functions.Statement) bool) bool {
	return slices.ContainsFunc(policy, match)
}

func authorizerOf(who sigv4.Identity) *urlAuthorizer {
	a := new(urlAuthorizer)
	a.IAM.AccessKey, a.IAM.AccountID, a.IAM.CallerID, a.IAM.UserID = who.KeyID, who.Account, who.Account, who.Account
	a.IAM.UserARN = "arn:aws:iam::" + who.Account + ":root"
	return a
}

// cors adds what browsers want to know, and tells whether that is all that was
// asked for.
func cors(h http.Header, r *http.Request, c *functions.Cors) (preflight bool) {
	origin := r.Header.Get("Origin")
	if c == nil || origin == "" || !slices.Contains(c.AllowOrigins, "*") && !slices.Contains(c.AllowOrigins, origin) {
		return false
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Add("Vary", "Origin")
	if c.AllowCredentials {
		h.Set("Access-Control-Allow-Credentials", "true")
	}
	if len(c.ExposeHeaders) > 0 {
		h.Set("Access-Control-Expose-Headers", strings.Join(c.ExposeHeaders, ","))
	}
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", strings.Join(c.AllowMethods, ","))
	h.Set("Access-Control-Allow-Headers", strings.Join(c.AllowHeaders, ","))
	if c.MaxAge > 0 {
		h.Set("Access-Control-Max-Age", strconv.Itoa(c.MaxAge))
	}
	return true
}

// urlCall is what a function is told of a request beside what it sent.
type urlCall struct {
	id, requestID string
	account       string // the function's
	who           *urlAuthorizer
}

// eventOf makes the function's event of a request.
func eventOf(r *http.Request, body []byte, c urlCall) urlEvent {
	now := time.Now().UTC()
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	source, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		source = r.RemoteAddr
	}
	e := urlEvent{
		Version: "2.0", RouteKey: "$default", RawPath: r.URL.Path, RawQueryString: r.URL.RawQuery,
		Headers: map[string]string{"host": host}, Query: map[string]string{},
		Context: urlContext{
			AccountID: "anonymous", APIID: c.id, Authorizer: c.who, DomainName: host, DomainPrefix: c.id, RequestID: c.requestID,
			RouteKey: "$default", Stage: "$default", Time: now.Format("02/Jan/2006:15:04:05 -0700"), TimeEpoch: now.UnixMilli(),
			HTTP: urlHTTP{Method: r.Method, Path: r.URL.Path, Protocol: r.Proto, SourceIP: source, UserAgent: r.UserAgent()},
		},
	}
	if c.who != nil {
		e.Context.AccountID = c.account
	}
	for name, values := range r.Header {
		if name != "Cookie" {
			e.Headers[strings.ToLower(name)] = strings.Join(values, ",")
		}
	}
	for _, k := range r.Cookies() {
		e.Cookies = append(e.Cookies, k.Name+"="+k.Value)
	}
	if query, err := url.ParseQuery(r.URL.RawQuery); err == nil {
		for name, values := range query {
			e.Query[name] = strings.Join(values, ",")
		}
	}
	e.Body, e.Base64 = string(body), false
	if len(body) > 0 && (!isText(r.Header.Get("Content-Type")) || !utf8.Valid(body)) {
		e.Body, e.Base64 = base64.StdEncoding.EncodeToString(body), true
	}
	return e
}

// isText says whether a body of a type is handed on as it is.
func isText(contentType string) bool {
	base, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	switch base = strings.TrimSpace(base); base {
	case "", "application/json", "application/xml", "application/javascript", "application/x-www-form-urlencoded":
		return true
	}
	return strings.HasPrefix(base, "text/") || strings.HasSuffix(base, "+json") || strings.HasSuffix(base, "+xml")
}

// urlAnswer is what a function makes of a request.
type urlAnswer struct {
	Status  int              `json:"statusCode"`
	Headers map[string]any   `json:"headers"`
	Multi   map[string][]any `json:"multiValueHeaders"`
	Cookies []string         `json:"cookies"`
	Body    *string          `json:"body"`
	Base64  bool             `json:"isBase64Encoded"`
	raw     []byte
}

// readURLAnswer takes a function's answer apart. One without a status is JSON
// for the client as it is.
func readURLAnswer(b []byte) urlAnswer {
	var probe struct {
		Status *json.Number `json:"statusCode"`
	}
	a := urlAnswer{Status: http.StatusOK}
	if json.Unmarshal(b, &probe) != nil || probe.Status == nil || json.Unmarshal(b, &a) != nil || a.Status < 100 || a.Status > 999 {
		a = urlAnswer{Status: http.StatusOK, Headers: map[string]any{"content-type": "application/json"}, raw: b}
		var text string
		if json.Unmarshal(b, &text) == nil {
			a.raw = []byte(text)
		}
		return a
	}
	if a.Body != nil {
		a.raw = []byte(*a.Body)
		if a.Base64 {
			if raw, err := base64.StdEncoding.DecodeString(*a.Body); err == nil {
				a.raw = raw
			}
		}
	}
	return a
}

// setHeaders gives a function's headers to the client.
func (a *urlAnswer) setHeaders(h http.Header) {
	for _, name := range slices.Sorted(maps.Keys(a.Headers)) {
		setHeader(h, name, a.Headers[name])
	}
	for name, values := range a.Multi {
		for _, v := range values {
			setHeader(h, name, v)
		}
	}
	for _, c := range a.Cookies {
		h.Add("Set-Cookie", c)
	}
	if h.Get("Content-Type") == "" {
		h.Set("Content-Type", "application/json")
	}
}

// setHeader sets one, unless it is about the connection.
func setHeader(h http.Header, name string, value any) {
	var text string
	switch v := value.(type) {
	case string:
		text = v
	case float64, bool:
		b, _ := json.Marshal(v) // cannot fail
		text = string(b)
	default:
		return
	}
	switch http.CanonicalHeaderKey(name) {
	case "Connection", "Content-Length", "Transfer-Encoding", "Upgrade", "Keep-Alive", "Trailer", "X-Amzn-Requestid":
		return
	}
	h.Set(name, text)
}

func writeURL(w http.ResponseWriter, a urlAnswer) {
	a.setHeaders(w.Header())
	if a.Status < 200 {
		a.Status = http.StatusOK // others are between servers
	}
	if a.Status != http.StatusNoContent && a.Status != http.StatusNotModified { // so that all clients see one that is cut off
		w.Header().Set("Content-Length", strconv.Itoa(len(a.raw)))
	}
	w.WriteHeader(a.Status)
	_, _ = w.Write(a.raw) // the client has gone, or the status has no body
}

// streamURL passes an answer on as it comes.
func (f *Frontend) streamURL(ctx context.Context, w http.ResponseWriter, inv *invocation) {
	inv.streaming = true
	a, done, err := f.run(ctx, inv)
	if err != nil {
		failURL(w, err)
		return
	}
	s := &urlStream{w: w, control: http.NewResponseController(w), contentType: a.Header.Get(invokewire.HeaderResponseType)}
	end := f.relay(a, s.send)
	done(end.alive)
	s.end(end.code != "")
}

// urlStream writes a streamed answer, after what its prelude says.
type urlStream struct {
	w           http.ResponseWriter
	control     *http.ResponseController
	contentType string
	begun       bool
	prelude     []byte // as far as it has come
}

func (s *urlStream) send(b []byte) error {
	if !s.begun && s.contentType == preludeType {
		s.prelude = append(s.prelude, b...)
		head, rest, ok := bytes.Cut(s.prelude, []byte(preludeEnd))
		if !ok && len(s.prelude) <= maxPrelude {
			return nil
		}
		var a urlAnswer
		if !ok || json.Unmarshal(head, &a) != nil {
			s.begin(urlAnswer{Status: http.StatusBadGateway})
			return errors.New("the prelude is not understood")
		}
		if a.Status < 200 || a.Status > 999 {
			a.Status = http.StatusOK
		}
		s.begin(a)
		b = rest
	}
	if !s.begun {
		s.begin(urlAnswer{Status: http.StatusOK, Headers: map[string]any{"content-type": cmp.Or(s.contentType, unformatted)}})
	}
	_ = s.control.SetWriteDeadline(time.Now().Add(chunkTime)) // servers of tests cannot
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	return s.control.Flush()
}

func (s *urlStream) begin(a urlAnswer) {
	s.begun, s.prelude = true, nil
	a.setHeaders(s.w.Header())
	s.w.WriteHeader(a.Status)
}

// end ends the answer; one that failed after it had begun is cut off.
func (s *urlStream) end(failed bool) {
	switch {
	case failed && s.begun:
		panic(http.ErrAbortHandler)
	case failed, !s.begun && s.contentType == preludeType:
		sayURL(s.w, http.StatusBadGateway, "Internal Server Error")
	case !s.begun:
		s.begin(urlAnswer{Status: http.StatusOK})
	}
}
