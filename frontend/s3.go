package frontend

import (
	"crypto/subtle"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"thaw/events"
	"thaw/functions"
	"thaw/lambdaapi"
)

const (
	// s3Path is where buckets send their notifications:
	// POST /s3/<account>/<function>[:<qualifier>].
	s3Path = "/s3/"
	// s3Principal is who must be allowed to invoke the function.
	s3Principal = "s3.amazonaws.com"
	// maxRecords bounds the records of one notification.
	maxRecords = 1000
)

// notification is what S3 and those who speak like it send.
type notification struct {
	Records []json.RawMessage
	// Event is of S3's test message, which has no records.
	Event string
}

// serveS3 takes a notification and queues it as an event of the function, if the
// function's policy lets the bucket invoke it. Strangers to this machine show an
// access key of the account: "Authorization: Bearer <id>/<secret>".
func (f *Frontend) serveS3(w http.ResponseWriter, r *http.Request, requestID string) {
	if r.Method != http.MethodPost {
		lambdaapi.WriteError(w, requestID, lambdaapi.MethodNotAllowedException.Errorf("Method %.20s is not allowed here: notifications are posted.", r.Method))
		return
	}
	if err := f.queueS3(w, r, requestID); err != nil {
		lambdaapi.WriteError(w, requestID, err)
		return
	}
	w.WriteHeader(http.StatusOK)
}

func (f *Frontend) queueS3(w http.ResponseWriter, r *http.Request, requestID string) error {
	account, reference, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, s3Path), "/")
	if !ok || !accountForm.MatchString(account) {
		return lambdaapi.ResourceNotFoundException.Errorf("Notifications go to /s3/<account>/<function>.")
	}
	if err := f.mayNotify(r, account); err != nil {
		return err
	}
	name, err := functions.ParseName(reference)
	if err == nil {
		name, err = name.In(account, f.options.Region, "")
	}
	if err != nil {
		return err
	}
	body, err := f.buffers.readBody(w, r, maxAsync)
	if err != nil {
		return bodyError(err, maxAsync)
	}
	defer f.buffers.put(body)
	var n notification
	if err := json.Unmarshal(body.b, &n); err != nil || len(n.Records) > maxRecords {
		return lambdaapi.InvalidRequestContentException.Errorf("The notification is not understood: want {\"Records\": […]} with at most %d records.", maxRecords)
	}
	fn, _, err := f.view.find(r.Context(), name.ID(), name.Qualifier, f.spec)
	if err != nil {
		return noFunction(err, name.ARN(f.options.Region))
	}
	if len(n.Records) == 0 {
		return nil // a test of the way here
	}
	records := make([]json.RawMessage, len(n.Records))
	for i, raw := range n.Records {
		if records[i], err = f.record(raw, fn, name); err != nil {
			return err
		}
	}
	payload, err := json.Marshal(map[string][]json.RawMessage{"Records": records})
	if err != nil || len(payload) > maxAsync {
		return bodyError(errTooLong, maxAsync)
	}
	err = f.options.Queue.Put(r.Context(), events.Event{
		ID: requestID, Account: account, Function: name.Function, Qualifier: name.Qualifier, Payload: payload, Source: s3Principal,
	})
	if err != nil {
		return f.queueError(err)
	}
	return nil
}

// mayNotify checks who sends notifications for an account.
func (f *Frontend) mayNotify(r *http.Request, account string) error {
	bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		if isLoopback(r.RemoteAddr) {
			return nil
		}
		return lambdaapi.AccessDeniedException.Errorf("Send \"Authorization: Bearer <access key id>/<secret>\" with a key of the account.")
	}
	id, secret, _ := strings.Cut(bearer, "/")
	k, err := f.options.Keys.find(r.Context(), id)
	if err != nil || k.Account != account || subtle.ConstantTimeCompare([]byte(k.Secret), []byte(secret)) != 1 {
		return lambdaapi.AccessDeniedException.Errorf("The bearer is not an access key of the account.")
	}
	return nil
}

func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// record checks that its bucket may invoke the function, and gives the record as
// S3 would have sent it: others prefix their events' names, and call themselves
// by their own.
func (f *Frontend) record(raw json.RawMessage, fn *functions.Function, of functions.Name) (json.RawMessage, error) {
	var members map[string]json.RawMessage
	var name, kind string
	err := json.Unmarshal(raw, &members)
	if err == nil {
		err = json.Unmarshal(member(raw, "s3", "bucket", "name"), &name)
	}
	if given, ok := members["eventName"]; ok && err == nil {
		err = json.Unmarshal(given, &kind)
	}
	if err != nil || name == "" {
		return nil, lambdaapi.InvalidRequestContentException.Errorf("A record of the notification names no bucket.")
	}
	bucket := "arn:aws:s3:::" + name
	if !allowed(fn.Policies[of.Qualifier], func(s functions.Statement) bool { return letsBucket(s, bucket, of.Account) }) {
		return nil, lambdaapi.AccessDeniedException.Errorf(
			"The function's policy does not allow %s to invoke it for %.100s of account %s: see AddPermission, with SourceArn and SourceAccount.", s3Principal, bucket, of.Account)
	}
	members["eventSource"] = json.RawMessage(`"aws:s3"`)
	event, err := json.Marshal(strings.TrimPrefix(kind, "s3:"))
	if err != nil {
		return nil, err
	}
	members["eventName"] = event
	return json.Marshal(members)
}

// member follows names into an object, to the letter: the function that is given
// the record may not take "S3" for "s3", as decoding into a struct does. It gives
// nothing where there is nothing.
func member(raw json.RawMessage, path ...string) json.RawMessage {
	for _, name := range path {
		var members map[string]json.RawMessage
		if json.Unmarshal(raw, &members) != nil {
			return nil
		}
		raw = members[name]
	}
	return raw
}

// letsBucket says whether a statement lets S3 invoke for a bucket. One without
// SourceArn lets any bucket, one without SourceAccount buckets of any account. A
// bucket is of the account that its notifications are sent for, which mayNotify
// has checked. Conditions that no notification can meet let none.
func letsBucket(s functions.Statement, bucket, account string) bool {
	switch {
	case !slices.Contains([]string{"lambda:InvokeFunction", "lambda:*", "*"}, s.Action), s.Principal != s3Principal && s.Principal != "*":
		return false
	case s.ViaURL, s.URLAuth != "", s.OrgID != "", s.EventToken != "":
		return false
	}
	return (s.SourceARN == "" || matchARN(s.SourceARN, bucket)) && (s.SourceAccount == "" || s.SourceAccount == account)
}

// matchARN matches with * and ?, as policies do.
func matchARN(pattern, arn string) bool {
	quoted := regexp.QuoteMeta(pattern)
	quoted = strings.ReplaceAll(strings.ReplaceAll(quoted, `\*`, ".*"), `\?`, ".")
	ok, err := regexp.MatchString("^(?s:"+quoted+")$", arn)
	return err == nil && ok
}
