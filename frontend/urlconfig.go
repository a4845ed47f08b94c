package frontend

import (
	"context"
	"crypto/rand"
	"slices"

	"thaw/functions"
	"thaw/lambdaapi"
)

// urlName reads which function or alias a request about a function URL is about.
func (c *control) urlName(in call, function string, qualifier *string) (functions.Name, error) {
	n, err := c.name(in, function, qualifier)
	if err == nil && (n.Qualifier == functions.Latest || isNumber(n.Qualifier)) {
		err = lambdaapi.ValidationException.Errorf(`1 validation error detected: Value '%s' at 'qualifier' failed to satisfy constraint: `+
			`Member must satisfy regular expression pattern: ((?!^\d+$)^[0-9a-zA-Z-_]+$)`, n.Qualifier)
	}
	return n, err
}

// Messages of function URLs.
const (
	urlNoFunction = "Function does not exist"
	urlNothing    = "The resource you requested does not exist."
)

// Ways in which a function URL answers.
const buffered = "BUFFERED"

func (c *control) createURL(ctx context.Context, in call, q *lambdaapi.CreateFunctionUrlConfigRequest) (*lambdaapi.CreateFunctionUrlConfigResponse, error) {
	n, err := c.urlName(in, q.FunctionName, q.Qualifier)
	if err != nil {
		return nil, err
	}
	u := functions.URL{ID: newURLID(), Auth: q.AuthType, Mode: buffered, Cors: corsOf(q.Cors), Created: c.now(), Modified: c.now()}
	set(&u.Mode, q.InvokeMode)
	_, err = c.store.Update(ctx, n.ID(), func(f *functions.Function) error {
		if _, alias := f.Aliases[n.Qualifier]; n.Qualifier != "" && !alias {
			return notFound(urlNoFunction)
		}
		if _, there := f.URLs[n.Qualifier]; there {
			return lambdaapi.ResourceConflictException.Errorf("Failed to create function url config for [functionArn = %s]. "+
				"Error message:  FunctionUrlConfig exists for this Lambda function", n.ARN(c.region))
		}
		setURL(f, n.Qualifier, u)
		return nil
	})
	if err != nil {
		return nil, instead(err, urlNoFunction)
	}
	return &lambdaapi.CreateFunctionUrlConfigResponse{
		AuthType: u.Auth, Cors: describeCors(u.Cors), CreationTime: lambdaapi.FormatTime(u.Created),
		FunctionArn: n.ARN(c.region), FunctionUrl: c.urls(u.ID), InvokeMode: q.InvokeMode,
	}, nil
}

func setURL(f *functions.Function, qualifier string, u functions.URL) {
	if f.URLs == nil {
		f.URLs = map[string]functions.URL{}
	}
	f.URLs[qualifier] = u
}

// newURLID makes the first label of a URL's host name: nobody guesses it.
func newURLID() string {
	const letters = "abcdefghijklmnopqrstuvwxyz234567" // 32, so every byte's lower bits choose evenly
	id := make([]byte, 32)
	_, _ = rand.Read(id) // never fails
	for i := range id {
		id[i] = letters[id[i]%32]
	}
	return string(id)
}

func (c *control) getURL(ctx context.Context, in call, q *lambdaapi.GetFunctionUrlConfigRequest) (*lambdaapi.GetFunctionUrlConfigResponse, error) {
	n, err := c.urlName(in, q.FunctionName, q.Qualifier)
	if err != nil {
		return nil, err
	}
	f, err := c.store.Get(ctx, n.ID())
	if err != nil {
		return nil, instead(err, urlNothing)
	}
	u, ok := f.URLs[n.Qualifier]
	if !ok {
		return nil, notFound(urlNothing)
	}
	out := lambdaapi.GetFunctionUrlConfigResponse(c.describeURL(f, n.Qualifier, u))
	return &out, nil
}

func (c *control) updateURL(ctx context.Context, in call, q *lambdaapi.UpdateFunctionUrlConfigRequest) (*lambdaapi.UpdateFunctionUrlConfigResponse, error) {
	n, err := c.urlName(in, q.FunctionName, q.Qualifier)
	if err != nil {
		return nil, err
	}
	f, err := c.store.Update(ctx, n.ID(), func(f *functions.Function) error {
		if _, alias := f.Aliases[n.Qualifier]; n.Qualifier != "" && !alias {
			return notFound(urlNoFunction)
		}
		u, ok := f.URLs[n.Qualifier]
		if !ok {
			return notFound(urlNothing)
		}
		set(&u.Auth, q.AuthType)
		set(&u.Mode, q.InvokeMode)
		if q.Cors != nil {
			u.Cors = corsOf(q.Cors)
		}
		u.Modified = c.now()
		setURL(f, n.Qualifier, u)
		return nil
	})
	if err != nil {
		return nil, instead(err, urlNoFunction)
	}
	out := lambdaapi.UpdateFunctionUrlConfigResponse(c.describeURL(f, n.Qualifier, f.URLs[n.Qualifier]))
	return &out, nil
}

func (c *control) deleteURL(ctx context.Context, in call, q *lambdaapi.DeleteFunctionUrlConfigRequest) (none, error) {
	n, err := c.urlName(in, q.FunctionName, q.Qualifier)
	if err != nil {
		return nil, err
	}
	_, err = c.store.Update(ctx, n.ID(), func(f *functions.Function) error {
		if _, ok := f.URLs[n.Qualifier]; !ok {
			return notFound(urlNothing)
		}
		delete(f.URLs, n.Qualifier)
		return nil
	})
	return nil, instead(err, urlNothing)
}

func (c *control) listURLs(ctx context.Context, in call, q *lambdaapi.ListFunctionUrlConfigsRequest) (*lambdaapi.ListFunctionUrlConfigsResponse, error) {
	n, err := c.bare(in, q.FunctionName)
	if err != nil {
		return nil, err
	}
	f, err := c.store.Get(ctx, n.ID())
	if err != nil {
		return nil, instead(err, urlNoFunction)
	}
	var keys []string // ARNs: the function's own URL has no qualifier
	for qualifier := range f.URLs {
		keys = append(keys, f.ARN(c.region, qualifier))
	}
	slices.Sort(keys)
	keys, next, err := page(keys, q.Marker, q.MaxItems)
	if err != nil {
		return nil, err
	}
	out := &lambdaapi.ListFunctionUrlConfigsResponse{FunctionUrlConfigs: []lambdaapi.FunctionUrlConfig{}, NextMarker: next}
	for _, arn := range keys {
		n, err := functions.ParseName(arn)
		if err != nil {
			return nil, err
		}
		out.FunctionUrlConfigs = append(out.FunctionUrlConfigs, c.describeURL(f, n.Qualifier, f.URLs[n.Qualifier]))
	}
	return out, nil
}

func (c *control) describeURL(f *functions.Function, qualifier string, u functions.URL) lambdaapi.FunctionUrlConfig {
	return lambdaapi.FunctionUrlConfig{
		AuthType: u.Auth, Cors: describeCors(u.Cors), CreationTime: lambdaapi.FormatTime(u.Created), FunctionArn: f.ARN(c.region, qualifier),
		FunctionUrl: c.urls(u.ID), InvokeMode: new(u.Mode), LastModifiedTime: lambdaapi.FormatTime(u.Modified),
	}
}

func corsOf(q *lambdaapi.Cors) *functions.Cors {
	if q == nil {
		return nil
	}
	return &functions.Cors{
		AllowCredentials: value(q.AllowCredentials), AllowHeaders: q.AllowHeaders, AllowMethods: q.AllowMethods,
		AllowOrigins: q.AllowOrigins, ExposeHeaders: q.ExposeHeaders, MaxAge: value(q.MaxAge),
	}
}

func describeCors(c *functions.Cors) *lambdaapi.Cors {
	if c == nil {
		return nil
	}
	out := &lambdaapi.Cors{AllowHeaders: c.AllowHeaders, AllowMethods: c.AllowMethods, AllowOrigins: c.AllowOrigins, ExposeHeaders: c.ExposeHeaders}
	if c.AllowCredentials {
		out.AllowCredentials = new(true)
	}
	if c.MaxAge != 0 {
		out.MaxAge = new(c.MaxAge)
	}
	return out
}
