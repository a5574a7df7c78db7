"""The OpenAI audio API over HTTP: forms, answers, errors, guards."""
