"""stub for now"""
def stock_round_seconds(folder, sites, numbers, rounds):
    raise NotImplementedError
