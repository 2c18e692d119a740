"""How a price, an allocation or a division of money is arrived at; one mechanism a file."""
