package frontend

import (
	"bytes"
	"context"
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"thaw/functions"
	"thaw/lambdaapi"
)

// mostPolicy is the longest policy in bytes.
const mostPolicy = 20 << 10

var (
	services   = regexp.MustCompile(`^[a-z0-9.-]+\.amazonaws\.com$`)
	accountIDs = regexp.MustCompile(`^[0-9]{12}$`)
	principals = regexp.MustCompile(`^arn:aws[a-zA-Z-]*:(iam|sts)::[0-9]{12}:.+$`)
)

// policy and statement are written as AWS writes them, members in its order.
type policy struct {
	Version   string
	ID        string `json:"Id"`
	Statement []statement
}

type statement struct {
	Sid       string
	Effect    string
	Principal any
	Action    string
	Resource  string
	Condition map[string]map[string]any `json:",omitempty"`
}

// written gives a statement of a policy about a function.
func written(s functions.Statement, resource string) statement {
	out := statement{Sid: s.Sid, Effect: "Allow", Action: s.Action, Resource: resource}
	switch {
	case s.Principal == "*":
		out.Principal = "*"
	case services.MatchString(s.Principal):
		out.Principal = map[string]string{"Service": s.Principal}
	case accountIDs.MatchString(s.Principal):
		out.Principal = map[string]string{"AWS": "arn:aws:iam::" + s.Principal + ":root"}
	default:
		out.Principal = map[string]string{"AWS": s.Principal}
	}
	equals := map[string]any{}
	for key, v := range map[string]string{
		"AWS:SourceAccount":          s.SourceAccount,
		"aws:PrincipalOrgID":         s.OrgID,
		"lambda:EventSourceToken":    s.EventToken,
		"lambda:FunctionUrlAuthType": s.URLAuth,
	} {
		if v != "" {
			equals[key] = v
		}
	}
	conditions := map[string]map[string]any{}
	if len(equals) > 0 {
		conditions["StringEquals"] = equals
	}
	if s.SourceARN != "" {
		conditions["ArnLike"] = map[string]any{"AWS:SourceArn": s.SourceARN}
	}
	if s.ViaURL {
		conditions["Bool"] = map[string]any{"lambda:InvokedViaFunctionUrl": "true"}
	}
	if len(conditions) > 0 {
		out.Condition = conditions
	}
	return out
}

// text writes JSON on one line; its shapes cannot fail.
func text(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("frontend: " + err.Error())
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func policyText(statements []functions.Statement, resource string) string {
	p := policy{Version: "2012-10-17", ID: "default", Statement: []statement{}}
	for _, s := range statements {
		p.Statement = append(p.Statement, written(s, resource))
	}
	return text(p)
}

// revision gives what clients see as a qualifier's RevisionId.
func (c *control) revision(ctx context.Context, f *functions.Function, n functions.Name) (string, error) {
	if a, ok := f.Aliases[n.Qualifier]; ok {
		return a.RevisionID, nil
	}
	v, err := c.version(ctx, f, n)
	if err != nil {
		return "", err
	}
	return v.RevisionID, nil
}

func (c *control) addPermission(ctx context.Context, in call, q *lambdaapi.AddPermissionRequest) (*lambdaapi.AddPermissionResponse, error) {
	n, err := c.name(in, q.FunctionName, q.Qualifier)
	if err != nil {
		return nil, err
	}
	if n.Qualifier == functions.Latest {
		return nil, refuse("We currently do not support adding policies for $LATEST.")
	}
	if q.Principal != "*" && !services.MatchString(q.Principal) && !accountIDs.MatchString(q.Principal) && !principals.MatchString(q.Principal) {
		return nil, refuse("The provided principal was invalid. Please check the principal and try again.")
	}
	s := functions.Statement{
		Sid: q.StatementId, Action: q.Action, Principal: q.Principal, SourceARN: value(q.SourceArn), SourceAccount: value(q.SourceAccount),
		OrgID: value(q.PrincipalOrgID), EventToken: value(q.EventSourceToken), URLAuth: value(q.FunctionUrlAuthType), ViaURL: value(q.InvokedViaFunctionUrl),
	}
	_, err = c.change(ctx, n, func(f *functions.Function) error {
		if err := c.has(f, n); err != nil {
			return err
		}
		current, err := c.revision(ctx, f, n)
		if err != nil {
			return err
		}
		if err := checkRevision(q.RevisionId, current, byPolicy); err != nil {
			return err
		}
		statements := f.Policies[n.Qualifier]
		if slices.ContainsFunc(statements, func(s functions.Statement) bool { return s.Sid == q.StatementId }) {
			return lambdaapi.ResourceConflictException.Errorf("The statement id (%s) provided already exists. "+
				"Please provide a new statement id, or remove the existing statement.", q.StatementId)
		}
		statements = append(statements, s)
		if size := len(policyText(statements, n.ARN(c.region))); size > mostPolicy {
			return lambdaapi.PolicyLengthExceededException.Errorf("The final policy size (%d) is bigger than the limit (%d).", size, mostPolicy)
		}
		setPolicy(f, n.Qualifier, statements)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &lambdaapi.AddPermissionResponse{Statement: new(text(written(s, n.ARN(c.region))))}, nil
}

func setPolicy(f *functions.Function, qualifier string, statements []functions.Statement) {
	if f.Policies == nil {
		f.Policies = map[string][]functions.Statement{}
	}
	f.Policies[qualifier] = statements
	if len(statements) == 0 {
		delete(f.Policies, qualifier)
	}
	f.Touch(qualifier)
}

func (c *control) getPolicy(ctx context.Context, in call, q *lambdaapi.GetPolicyRequest) (*lambdaapi.GetPolicyResponse, error) {
	n, err := c.name(in, q.FunctionName, q.Qualifier)
	if err != nil {
		return nil, err
	}
	const nothing = "The resource you requested does not exist."
	f, err := c.store.Get(ctx, n.ID())
	if err != nil {
		return nil, instead(err, nothing)
	}
	statements := f.Policies[n.Qualifier]
	if len(statements) == 0 {
		return nil, notFound(nothing)
	}
	revision, err := c.revision(ctx, f, n)
	if err != nil {
		return nil, err
	}
	return &lambdaapi.GetPolicyResponse{Policy: new(policyText(statements, n.ARN(c.region))), RevisionId: &revision}, nil
}

func (c *control) removePermission(ctx context.Context, in call, q *lambdaapi.RemovePermissionRequest) (none, error) {
	n, err := c.name(in, q.FunctionName, q.Qualifier)
	if err != nil {
		return nil, err
	}
	_, err = c.store.Update(ctx, n.ID(), func(f *functions.Function) error {
		if err := c.has(f, n); err != nil {
			return err
		}
		statements := f.Policies[n.Qualifier]
		if len(statements) == 0 {
			return notFound("No policy is associated with the given resource.")
		}
		i := slices.IndexFunc(statements, func(s functions.Statement) bool { return s.Sid == q.StatementId })
		if i < 0 {
			return notFound("Statement %s is not found in resource policy.", q.StatementId)
		}
		current, err := c.revision(ctx, f, n)
		if err != nil {
			return err
		}
		if err := checkRevision(q.RevisionId, current, byFunction); err != nil {
			return err
		}
		setPolicy(f, n.Qualifier, slices.Delete(statements, i, i+1))
		return nil
	})
	return nil, instead(err, "No policy found for: %s", n.ARN(c.region))
}
